"""A whole evaluation: what is asked, what is kept, what is compared, what is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter

import pytest

from tunekit.core.errors import DataError, MachineError, UserError
from tunekit.core.progress import Silent
from tunekit.exam import facts
from tunekit.exam.answers import Store
from tunekit.exam.report_rows import read_results

QUIET = {"forgetting": {"check": False}, "contamination": {"check": False}}
TASKS = [{"kind": "perplexity"}, {"kind": "generation", "max_new_tokens": 8}]


class Said(Silent):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    warn = say


@pytest.fixture
def kept(monkeypatch):
    """The keys of the answers that were computed."""
    keys = []
    keep = Store.keep
    monkeypatch.setattr(Store, "keep", lambda self, key, answer: (keys.append(key), keep(self, key, answer))[1])
    return keys


def test_the_folder_holds_what_was_measured(job, folders, questions):
    work = job(baseline=str(folders / "base"), data=[{"path": str(questions)}], tasks=TASKS, **QUIET)
    record = work.run()
    assert facts.load(work.target).tasks == record.tasks
    assert [(task.name, task.metric, task.n) for task in record.tasks] == [
        ("perplexity", "perplexity", 40), ("generation", "exact_match", 40),
    ]  # fmt: skip
    assert {path.name for path in work.target.iterdir()} == {
        "record.json", "results.parquet", "report.html", "report.md",
    }  # fmt: skip
    rows = read_results(work.target)
    assert Counter(row["task"] for row in rows) == {"perplexity": 40, "generation": 40}
    asked = [json.loads(line)["output"] for line in questions.read_text().splitlines()]
    answers = [row for row in rows if row["task"] == "generation"]
    assert [row["reference"] for row in answers] == asked
    assert [row["where"].endswith(f"questions.jsonl:{n}") for n, row in enumerate(answers, start=1)] == [True] * 40
    right = sum(row["tuned_text"] == row["reference"] for row in answers) / 40
    assert record.tasks[1].tuned.value == right and all(row["base_text"] is not None for row in answers)


def test_a_model_beside_itself_shows_no_difference(job, folders, questions):
    record = job(baseline=str(folders / "tuned"), data=[{"path": str(questions)}], tasks=TASKS).run()
    assert [task.verdict for task in record.tasks] == ["no detectable difference"] * 2
    assert [task.difference.value for task in record.tasks] == [0.0, 0.0]


def test_answers_are_computed_once(job, folders, questions, kept):
    given = {"baseline": str(folders / "base"), "data": [{"path": str(questions)}], "tasks": TASKS, **QUIET}
    first = job(**given).run()
    assert len(kept) == len(set(kept)) + len(kept) // 2 == 160  # the same questions, asked of two models
    said = Said()
    again = job(said, target="again", **given).run()
    assert len(kept) == 160 and again.tasks[1].tuned == first.tasks[1].tuned
    assert said.lines.count("generation: 40 of 40 answers are known from before") == 2
    changed = [{"kind": "generation", "max_new_tokens": 9}]
    job(target="longer", **given | {"tasks": changed, "baseline": None}).run()
    assert len(kept) == 200  # other answers, for they may be longer
    job(target="without", **given | {"cache": False}).run()
    assert len(kept) == 200


def test_other_weights_have_answers_of_their_own(job, folders, questions, kept, tmp_path):
    """One value of one tensor is another one: a sample of the weights would not show it."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(folders / "tuned", tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    name = max(weights, key=lambda key: weights[key].numel())
    weights[name].view(-1)[7] += 1
    save_file(weights, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    given = {"baseline": None, "data": [{"path": str(questions)}], "tasks": TASKS[:1], **QUIET}
    job(**given).run()
    job(target="other_evaluation", model=str(tmp_path / "other"), **given).run()
    assert len(kept) == 80


SCRIPT = """\
import json, os, signal, sys
from pathlib import Path
from tunekit.core.progress import Silent
from tunekit.exam.answers import Store
from tunekit.exam.job import Job
from tunekit.exam.recipe import check
from tunekit.recipe.document import parse
value, target, after = sys.argv[1:]
keep, count = Store.keep, 0
def counted(self, key, answer):
    global count
    keep(self, key, answer)
    count += 1
    if count == int(after):
        os.kill(os.getpid(), signal.SIGKILL)
Store.keep = counted
Job(check(parse(value, "eval.yaml")), Path(), Path(target), Silent()).run()
print(count)
"""


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_where_it_was(folders, questions, tmp_path):
    """No row is computed twice, and the result is that of an evaluation that was never cut off."""
    import os

    value = {"model": str(folders / "tuned"), "baseline": str(folders / "base"), "data": [{"path": str(questions)}],
             "tasks": TASKS, "engine": {"batch_size": 8}, **QUIET}  # fmt: skip

    def run(home, target, after):
        environment = {**os.environ, "HF_HOME": str(tmp_path / home), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SCRIPT, json.dumps(value), str(tmp_path / target), str(after)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    killed = run("one", "evaluation", 57)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "evaluation").exists()
    finished = run("one", "evaluation", -1)
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) == 160 - 57
    assert run("two", "whole", -1).stdout.strip() == "160"
    assert read_results(tmp_path / "evaluation") == read_results(tmp_path / "whole")
    one, other = (facts.load(tmp_path / name) for name in ("evaluation", "whole"))
    assert [task.model_copy(update={"seconds": 0.0}) for task in one.tasks] == [
        task.model_copy(update={"seconds": 0.0}) for task in other.tasks
    ]


@pytest.mark.slow
def test_drawn_answers_are_the_mean_of_the_seeds(job, questions):
    task = {"kind": "generation", "max_new_tokens": 8, "temperature": 1.0, "metrics": ["rouge1"]}
    given = {"data": [{"path": str(questions)}], "tasks": [task], "baseline": None, **QUIET}
    one, two = (job(target=f"seed{seed}", seeds=[seed], **given).run().tasks[0].tuned.value for seed in (1, 2))
    both = job(target="both", seeds=[1, 2], **given).run().tasks[0]
    assert both.tuned.value == pytest.approx((one + two) / 2) and one != two
    assert both.note.startswith("mean of 2 seeds, standard deviation ")


@pytest.fixture
def adapter(folders, tmp_path):
    """A LoRA on the base whose values are drawn with this scale; 0 changes nothing."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def build(scale):
        model = AutoModelForCausalLM.from_pretrained(folders / "base", dtype=torch.float32)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj", "up_proj"]))
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=scale)
        model.save_pretrained(tmp_path / f"adapter-{scale}")
        return str(tmp_path / f"adapter-{scale}")

    return build


def test_what_the_base_wrote_is_less_likely_after_tuning(job, adapter, questions):
    given = {"data": [{"path": str(questions)}], "tasks": TASKS[:1], "contamination": {"check": False},
             "forgetting": {"texts": 8, "tokens": 32}}  # fmt: skip
    record = job(model=adapter(0.5), **given).run()
    (task,) = record.forgetting
    assert task.name == "the base's own text" and task.tuned.value > 1.2 * task.base.value
    (same,) = job(target="same", model=adapter(0.0), **given).run().forgetting
    assert same.difference.value == pytest.approx(0.0, abs=1e-9) and same.base == task.base


def test_drift_is_not_measured_against_a_model_that_it_does_not_come_from(job, folders, questions):
    given = {"data": [{"path": str(questions)}], "tasks": TASKS[:1], "forgetting": {"texts": 8, "tokens": 32}}
    assert job(baseline=str(folders / "base"), **given).run().forgetting is None


def test_an_adapter_s_settings_make_other_answers(job, adapter, questions, kept):
    """The weights are the same: only the scale in its configuration is not."""
    import json as jsonlib
    from pathlib import Path

    given = {"data": [{"path": str(questions)}], "tasks": TASKS[:1], "baseline": None, **QUIET}
    folder = adapter(0.5)
    first = job(model=folder, **given).run()
    config = Path(folder) / "adapter_config.json"
    config.write_text(jsonlib.dumps(jsonlib.loads(config.read_text()) | {"lora_alpha": 80}))
    again = job(target="again", model=folder, **given).run()
    assert len(kept) == 80 and again.tasks[0].tuned != first.tasks[0].tuned


def test_what_the_recipe_says_for_all_tasks_reaches_those_with_a_key_of_their_own(job):
    from tunekit.exam.tasks import tasks_of

    questions = {"kind": "questions", "prompt": "{a}", "reference": "b", "temperature": 1.0}
    harness = {"kind": "harness", "tasks": ["piqa"]}
    exam = job(limit=5, seeds=[3, 4], tasks=[questions, questions | {"seeds": [9]}, harness]).exam
    first, second, third = tasks_of(exam)
    assert (first.config.seeds, second.config.seeds, third.config.limit) == ((3, 4), (9,), 5)
    assert [task.label for task in tasks_of(exam)] == ["questions", "questions-2", "harness"]
    named = job(tasks=[harness | {"name": "run-1"}, harness | {"name": "run"}]).exam
    assert [task.label for task in tasks_of(named)] == ["run-1", "run"]


def test_the_baseline_is_gone_when_the_model_is_loaded(job, folders, questions, monkeypatch):
    """Two models at once would need twice the memory."""
    import gc
    import weakref

    from tunekit.exam import models

    alive, load = [], models._loaded

    def watched(who, config):
        gc.collect()
        alive.append(sum(one() is not None for one in seen))
        model = load(who, config)
        seen.append(weakref.ref(model))
        return model

    seen = []
    monkeypatch.setattr(models, "_loaded", watched)
    job(baseline=str(folders / "base"), data=[{"path": str(questions)}], tasks=TASKS, **QUIET).run()
    assert alive == [0, 0]


def test_a_row_is_found_in_the_training_data_whatever_a_task_puts_around_it(job, tmp_path):
    """A template around its columns, the turns before the question, a document without a question."""
    rows = [{"q": f"Which of the {n} blue boats left the old harbour first this morning, and why?", "a": f"boat {n}"}
            for n in range(3)]  # fmt: skip
    pairs = [{"prompt": row["q"], "completion": row["a"]} for row in rows]
    asked = [*rows[:2], {"q": "And now?", "a": "no"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    task = {"kind": "questions", "prompt": "Question: {q}\nAnswer:", "reference": "a", "max_new_tokens": 2}
    train = {"train": [{"path": str(tmp_path / "train.jsonl")}]}
    given = {"baseline": None, "forgetting": {"check": False}, "contamination": train}
    record = job(data=[{"path": str(tmp_path / "eval.jsonl")}], tasks=[task], **given).run()
    assert [leak.where.rpartition(":")[2] for leak in record.contamination.rows] == ["1", "2"]
    talks = [{"messages": [{"role": "system", "content": "You are kind."}, {"role": "user", "content": r["q"]},
                           {"role": "assistant", "content": r["a"]}]} for r in rows]  # fmt: skip
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    talk = [{"path": str(tmp_path / "talks.jsonl")}]
    record = job(target="talks", data=talk, tasks=TASKS[:1], **given | {"contamination": {"train": talk}}).run()
    assert len(record.contamination.rows) == 3


def test_planted_rows_of_the_training_data_are_found(job, questions, tmp_path):
    from tunekit.data import world

    training = list(world.rows("instructions", "train", 200))
    planted = [dict(row) for row in training[20:30]]
    rows = [json.loads(line) for line in questions.read_text().splitlines()] + planted
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in training))
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = job(
        baseline=None, data=[{"path": str(tmp_path / "eval.jsonl")}], tasks=TASKS,
        contamination={"train": [{"path": str(tmp_path / "train.jsonl")}]},
    ).run()  # fmt: skip
    found = record.contamination
    assert [leak.where.rpartition(":")[2] for leak in found.rows] == [str(n) for n in range(41, 51)]
    assert [leak.matched.rpartition(":")[2] for leak in found.rows] == [str(n) for n in range(21, 31)]
    assert [task.clean.n for task in record.tasks] == [40, 40] and record.tasks[0].n == 50
    assert "10 of 50 evaluated rows stand in the training data" in record.warnings


def test_bad_input_is_refused_before_a_model_is_loaded(job, questions, tmp_path, monkeypatch):
    from tunekit.model import restore

    def never(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(restore, "restore", never)
    monkeypatch.setattr(restore, "load_base", never)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"messages": 1}\n' * 3)
    data = [{"path": str(questions)}]
    for error, what, given in [
        (UserError, "has no rows", {"tasks": TASKS}),
        (DataError, "the file is empty", {"tasks": TASKS, "data": [{"path": str(tmp_path / "empty.jsonl")}]}),
        (DataError, "no format fits|fits", {"tasks": TASKS, "data": [{"path": str(tmp_path / "bad.jsonl")}]}),
        (UserError, "unknown metric 'exact_mach'", {"tasks": [{"kind": "generation", "metrics": ["exact_mach"]}],
                                                  "data": data}),
        (DataError, "no number in the reference",
         {"tasks": [{"kind": "generation", "metrics": ["numeric_answer"]}], "data": data}),
        (UserError, "is named twice",
         {"tasks": [{"kind": "generation", "metrics": ["exact_match"] * 2}], "data": data}),
        (UserError, "two tasks are called 'a'", {"tasks": [{"kind": "generation", "name": "a"}] * 2, "data": data}),
        (UserError, "not known what", {"tasks": TASKS, "data": data, "baseline": "base"}),
    ]:  # fmt: skip
        with pytest.raises(error, match=what):
            job(**given).run()


def test_names_that_nothing_stands_for_are_refused_before_rows_are_read(job, monkeypatch, tmp_path):
    """Metrics and files, all of them together; nothing was read or loaded by then."""
    from tunekit.exam.session import Reader

    monkeypatch.setattr(Reader, "items", lambda *_: pytest.fail("rows were read"))
    metrics = ["exact_mach", {"bleu": {"tokenise": "zh"}}, "ece", "hub:some/metric"]
    tasks = [{"kind": "generation", "metrics": metrics, "data": [{"path": str(tmp_path / "none.jsonl")}]}]
    with pytest.raises(UserError) as refused:
        job(tasks=tasks).run()
    told = [problem.what for problem in refused.value.problems]
    assert told[0] == "unknown metric 'exact_mach'" and told[1] == "metric 'bleu' has no option 'tokenise'"
    assert "ece' needs the probability" in told[2] and "hub:some/metric' runs Python code" in told[3]
    assert "none.jsonl" in told[4] and len(told) == 5


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({"taks": []}, r"unknown key 'taks'"),
        ({"tasks": [{"kind": "generatoin"}]}, r"unknown evaluation task 'generatoin'"),
        ({"engine": {"kind": "vlm"}}, r"unknown engine 'vlm'"),
        ({"tasks": [{"kind": "generation", "max_tokens": 3}]}, r"unknown key 'tasks.0.max_tokens'"),
        ({"engine": {"batchsize": 3}}, r"unknown key 'engine.batchsize'"),
        ({"confidence": 2}, r"'confidence' must be > 0.5 and < 1"),
    ],
)
def test_a_recipe_with_a_fault_is_refused_with_its_place(value, what):
    from tunekit.exam.recipe import check
    from tunekit.recipe.document import parse

    with pytest.raises(UserError, match=what) as refused:
        check(parse(json.dumps({"model": "builtin:tiny"} | value, indent=1), "eval.yaml"))
    assert refused.value.problems[0].where.startswith("eval.yaml:")


def test_damaged_kept_answers_are_told(job, questions, tmp_path):
    given = {"baseline": None, "data": [{"path": str(questions)}], "tasks": TASKS[:1], **QUIET}
    job(**given).run()
    (store,) = (tmp_path / "cache" / "tunekit" / "answers").glob("*.sqlite")
    store.write_bytes(b"not a database at all" * 100)
    with pytest.raises(MachineError, match="kept answers cannot be read"):
        job(target="again", **given).run()


def test_p_values_of_several_tasks_account_for_one_another(tmp_path):
    """By hand: Holm multiplies the smallest of three by 3, the next by 2; a task without a p-value does not count."""
    from exam_for_tests import RECORD, task

    from tunekit.exam.facts import ExamRecord
    from tunekit.exam.markdown import markdown
    from tunekit.exam.results import with_adjusted

    def compared(p, verdict="better"):
        return task("t", "accuracy", 9, (0.1, 0.0, 0.2), (0.3, 0.2, 0.4), (0.2, 0.1, 0.3, p), verdict)

    alone = task("u", "accuracy", 9, None, (0.3, 0.2, 0.4), None, None)
    record = ExamRecord.model_validate(RECORD | {"tasks": [compared(0.03), alone, compared(0.01), compared(0.02)]})
    found = with_adjusted(record.tasks)
    assert [one.adjusted for one in found] == [pytest.approx(0.04), None, pytest.approx(0.03), pytest.approx(0.04)]
    page = markdown(record.model_copy(update={"tasks": found}))
    assert "p = 0.010, adjusted p = 0.030" in page and "Adjusted p-values account for one another (Holm)" in page
    single = with_adjusted(record.tasks[:2])
    assert [one.adjusted for one in single] == [None, None]
    assert "adjusted" not in markdown(record.model_copy(update={"tasks": single, "forgetting": None}))
