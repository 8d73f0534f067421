"""The tasks in the proof: what source and artefact answer, what is allowed to be lost, and what is told of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tunekit.cli.app import app
from tunekit.compress import making, tasks
from tunekit.compress.prune import making as pruning
from tunekit.compress.runtimes import transformers as runtime
from tunekit.data import world
from tunekit.exam.facts import ExamTask
from tunekit.model.names import TINY
from tunekit.runs.record import Difference, Estimate

SMALL = ["proof.rows=4", "proof.answers=1", "proof.new_tokens=4"]
RIGHT, WRONG = 6, 2


def run(*words, command="quantize", sets=()):
    given = [str(word) for word in words]
    return CliRunner().invoke(app, [command, *given, *(f"--set={value}" for value in (*SMALL, *sets))])


def words_of(done):
    return " ".join(done.output.split())


def record_of(folder, name="quantize.json"):
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def questions(tmp_path_factory, tokenizer):
    """Eight questions: to six of them the embedded model's own greedy answer is the right one, to two it is not."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype="auto").eval()
    stops = model.generation_config.eos_token_id
    lines = []
    for number, row in enumerate(world.rows("instructions", "held_out", RIGHT + WRONG)):
        turns = [{"role": "user", "content": row["instruction"]}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        config = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=stops, pad_token_id=0)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, ids.shape[1] :]
        said = tokenizer.decode(out, skip_special_tokens=True).strip()
        lines.append({"question": row["instruction"], "answer": said if number < RIGHT else "something else"})
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def asked(questions):
    """Overrides that name the tasks: what the model says, and how likely the rows are."""
    data = json.dumps([{"path": str(questions)}])
    return "proof.tasks=[{kind: generation, max_new_tokens: 8}, {kind: perplexity}]", f"proof.data={data}"


def dulled(folder):
    """The last norm is nothing: the model says one token for ever."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"] * 0.0}, path, {"format": "pt"})


def spoiled(monkeypatch, module, spoil):
    work = module.work

    def wrong(job):
        answer = work(job)
        spoil(Path(job["target"]))
        return answer

    monkeypatch.setattr(module, "work", wrong)


def task(base, tuned, *, metric="exact_match", higher=True):
    sides = {name: Estimate(value=v, low=v, high=v) for name, v in (("base", base), ("tuned", tuned))}
    return ExamTask(name="generation", metric=metric, higher_is_better=higher, n=400, **sides)


@pytest.mark.parametrize(
    ("given", "most", "told"),
    [
        (task(0.98, 0.91), 0.0701, None),
        (task(0.98, 0.91), 0.0699, "from 98.0 % to 91.0 %, down 7.0 points; at most 6.99 points are allowed"),
        (task(0.98, 0.99), 0.0, None),
        (task(0.98, 0.91), None, None),
        (task(1.5, 9.5, metric="perplexity", higher=False), 0.0, None),
        (task(40.0, 39.0, metric="bleu"), 0.0251, None),
        (task(40.0, 39.0, metric="bleu"), 0.0249, "down 2.5 %; at most 2.5 % is allowed"),
        (task(0.5, math.nan), 0.5, "down nan"),
    ],
)
def test_a_score_falls_by_points_or_by_its_part(given, most, told):
    found = list(tasks.lost([given], most, "more bits"))
    assert [told in problem.what for problem in found] == ([True] if told else [])
    assert all(problem.where == "--max-score-loss" and "'generation'" in problem.what for problem in found)


def test_what_is_the_same_shows_no_difference(model, asked, tmp_path, here):
    """Both types hold the source's bfloat16 exactly; the source is asked once for both of them."""
    words = ("--to", "bfloat16,float32", "--output", tmp_path / "same", "--max-score-loss", "0")
    done = run(model, *words, sets=asked)
    assert done.exit_code == 0, done.output
    told = words_of(done)
    assert "exact match" in told and "75.0 %" in told and "no detectable" in told
    bfloat = record_of(tmp_path / "same" / "bfloat16")["tasks"]
    assert [(one["name"], one["metric"], one["n"]) for one in bfloat] == [
        ("generation", "exact_match", 8), ("perplexity", "perplexity", 8),
    ]  # fmt: skip
    assert bfloat[0]["base"]["value"] == bfloat[0]["tuned"]["value"] == RIGHT / (RIGHT + WRONG)
    assert [one["difference"]["value"] for one in bfloat] == [0.0, 0.0]
    assert {one["verdict"] for one in bfloat} == {"no detectable difference"}
    page = (tmp_path / "same" / "report.html").read_text()
    assert "own tasks" in page and "75.0 %" in page and "no detectable difference" in page


def test_the_source_is_asked_once_for_all_kinds(model, asked, tmp_path, here, monkeypatch):
    loaded = []
    load = runtime.load
    monkeypatch.setattr(runtime, "load", lambda folder, **more: (loaded.append(folder), load(folder, **more))[1])
    done = run(model, "--to", "bfloat16,float16,float32", "--output", tmp_path / "same", sets=asked)
    assert done.exit_code == 0, done.output
    assert loaded.count(model) == 2, "measured, and asked"
    assert len(loaded) == 2 + 2 * 3


def test_a_damaged_model_is_worse_and_refused_where_that_is_not_allowed(model, asked, tmp_path, here, monkeypatch):
    spoiled(monkeypatch, making, dulled)
    done = run(model, "--to", "bfloat16", "--output", tmp_path / "small", "--max-score-loss", "2%", sets=asked)
    assert done.exit_code == 5, done.output
    assert "task 'generation', exact match: from 75.0 % to 0.0 %, down 75.0 points; at most 2 points" in words_of(done)
    assert "--max-score-loss" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    done = run(model, "--to", "bfloat16", "--output", tmp_path / "small", sets=asked)
    assert done.exit_code == 0, done.output
    found = {one["metric"]: one for one in record_of(tmp_path / "small")["tasks"]}
    assert found["exact_match"]["verdict"] == "worse" and found["exact_match"]["difference"]["p_value"] == 2 / 2**6
    assert found["exact_match"]["difference"]["value"] == -0.75
    card = (tmp_path / "small" / "README.md").read_text()
    assert "| generation, exact match | 8 | 75.0 %" in card and "worse" in card


def test_a_pruned_model_is_held_to_the_same(model, asked, tmp_path, here, monkeypatch):
    words = (model, "--way", "magnitude", "--sparsity", "0.05", "--output", tmp_path / "sparse")
    done = run(*words, command="prune", sets=asked)
    assert done.exit_code == 0, done.output
    found = record_of(tmp_path / "sparse", "prune.json")["tasks"]
    assert found[0]["base"]["value"] == 0.75 and "exact match" in done.output and found[1]["n"] == 8
    card = (tmp_path / "sparse" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "- magnitude\n- pruned\n" in card
    spoiled(monkeypatch, pruning, dulled)
    again = run(*words[:-1], tmp_path / "worse", "--max-score-loss", "0.5", command="prune", sets=asked)
    assert again.exit_code == 5 and "down 75.0 points; at most 50 points" in words_of(again), again.output
    assert "prune less, or heal it" in words_of(again)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "sparse"]


def test_a_gguf_file_is_asked_through_llama_cpp(model, asked, tmp_path, here):
    pytest.importorskip("gguf", reason="gguf is an extra package")
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is an extra package, built from source")
    done = run(model, "--to", "q8_0", "--output", tmp_path / "small", "--max-score-loss", "2%", sets=asked)
    assert done.exit_code == 0, done.output
    generation, perplexity = record_of(tmp_path / "small")["tasks"]
    assert generation["base"]["value"] == generation["tuned"]["value"] == 0.75
    assert abs(perplexity["difference"]["value"]) < 0.01 * perplexity["base"]["value"]
    card = (tmp_path / "small" / "README.md").read_text()
    assert "library_name: gguf" in card and "llama-server -m model-q8_0.gguf --jinja" in card


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps that holds out 10 rows and has 4 of them answered."""
    place = tmp_path_factory.mktemp("run")
    rows = place / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in world.rows("instructions", "train", 40)))
    recipe = {
        "method": "sft", "model": {"name": "builtin:tiny"}, "adapter": None,
        "data": {"train": [{"path": str(rows)}], "max_length": 96, "eval": {"fraction": 0.25}},
        "train": {"max_steps": 2, "batch_size": 4, "threads": 1},
        "eval": {"generate": True, "limit": 4, "max_new_tokens": 6, "baseline": False, "confidence": 0.9},
        "output": {"dir": str(place / "run")},
    }  # fmt: skip
    (place / "sft.yaml").write_text(json.dumps(recipe))
    done = CliRunner().invoke(app, ["sft", str(place / "sft.yaml"), "--quiet"])
    assert done.exit_code == 0, done.output
    return place / "run"


def test_a_runs_own_tasks_are_those_of_its_evaluation(trained, tmp_path, here):
    done = run(trained, "--to", "bfloat16", "--output", tmp_path / "small")
    assert done.exit_code == 0, done.output
    found = record_of(tmp_path / "small")["tasks"]
    assert [(one["name"], one["metric"], one["n"], one["confidence"]) for one in found] == [
        ("perplexity", "perplexity", 4, 0.9), ("generation", "exact_match", 4, 0.9),
    ]  # fmt: skip
    told = json.loads((trained / "record.json").read_text())["evaluation"]["tasks"]
    own = next(one for one in told if one["metric"] == "perplexity")
    assert found[0]["base"]["value"] == pytest.approx(own["tuned"]["value"], rel=0.02), "the run's figure, in its type"
    done = run(trained, "--to", "bfloat16", "--output", tmp_path / "more", sets=["proof.limit=7"])
    assert [one["n"] for one in record_of(tmp_path / "more")["tasks"]] == [7, 7]
    done = run(trained, "--to", "bfloat16", "--output", tmp_path / "none", sets=["proof.tasks=[]"])
    assert done.exit_code == 0 and record_of(tmp_path / "none")["tasks"] == [] and "verdict" not in done.output
    assert "own tasks" not in (tmp_path / "none" / "report.html").read_text()


def test_without_tasks_and_limits_all_is_as_before(model, tmp_path, here):
    done = run(model, "--to", "bfloat16", "--output", tmp_path / "small")
    assert done.exit_code == 0 and record_of(tmp_path / "small")["tasks"] == [], done.output
    assert "## Tasks" not in (tmp_path / "small" / "README.md").read_text()


@pytest.mark.parametrize(
    ("sets", "words", "code", "told"),
    [
        ((), ("--max-score-loss", "2%"), 2, "there are no tasks whose scores could fall"),
        (("proof.tasks=[{kind: perplexity}]",), ("--max-score-loss", "2%"), 2, "no task has a score of which more is"),
        ((), ("--max-score-loss", "200%"), 2, "'200%' is no share"),
        (("proof.tasks=[{kind: generatoin}]",), (), 2, "did you mean 'generation'?"),
        (("proof.tasks=[{kind: generation, max_tokens: 3}]",), (), 2, "unknown key"),
        (("proof.tasks=[{kind: generation}]", "proof.data=[]"), (), 2, "task 'generation' has no rows"),
    ],
)
def test_what_is_asked_wrongly_is_told_before_anything_is_made(
    model, questions, tmp_path, here, sets, words, code, told
):
    data = f'proof.data=[{{path: "{questions}"}}]'
    done = run(model, "--to", "bfloat16", "--output", tmp_path / "x", *words, sets=[data, *sets])
    assert done.exit_code == code and told in words_of(done), done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_options_of_tasks_reach_the_other_process(model, questions, tmp_path, here):
    """Templates, metrics with options, a file of examples beside the recipe, drawn answers with two seeds."""
    (tmp_path / "shots.jsonl").write_text('{"question": "Who?", "answer": "Anna"}\n')
    (tmp_path / "quantize.yaml").write_text(
        f"""\
model: {model}
to: [bfloat16]
proof:
  rows: 4
  answers: 1
  new_tokens: 4
  data: [{{path: {questions}}}]
  limit: 5
  tasks:
    - kind: questions
      name: asked
      data: [{{path: {questions}}}]
      prompt: "{{question}}"
      reference: answer
      metrics: [contains, {{exact_match: {{ignore_case: true}}}}]
      few_shot: {{path: shots.jsonl}}
      max_new_tokens: 4
      temperature: 0.7
      seeds: [1, 2]
      limit: 3
    - {{kind: generation, max_new_tokens: 8}}
"""
    )
    done = run(tmp_path / "quantize.yaml", "--output", tmp_path / "small")
    assert done.exit_code == 0, done.output
    found = record_of(tmp_path / "small")["tasks"]
    assert [(one["name"], one["metric"], one["n"]) for one in found] == [
        ("asked", "contains", 3), ("asked", "exact_match", 3), ("generation", "exact_match", 5),
    ]  # fmt: skip
    assert {one["difference"]["value"] for one in found} == {0.0} and found[1]["options"]["ignore_case"] is True


@pytest.mark.slow
def test_in_fresh_processes(model, asked, tmp_path):
    done = run(model, "--to", "bfloat16", "--output", tmp_path / "small", "--max-score-loss", "2%", sets=asked)
    assert done.exit_code == 0, done.output
    assert record_of(tmp_path / "small")["tasks"][0]["tuned"]["value"] == 0.75


def test_a_difference_that_is_not_known_survives_the_record():
    known = task(0.5, math.nan).model_copy(update={"difference": Difference(value=math.nan, low=0, high=1, p_value=1)})
    from tunekit.runs.wording import json_ready

    (found,) = tasks.read(json.loads(json.dumps([json_ready(known.model_dump())], allow_nan=False)))
    assert math.isnan(found.tuned.value) and math.isnan(found.difference.value)
