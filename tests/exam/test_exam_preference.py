"""Reward models in `tunekit eval`: their scores against plain transformers and the run's own, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tunekit.core.errors import UserError
from tunekit.model.names import TINY

PAIRS = {"tasks": [{"kind": "preference"}], "baseline": None}


def turns(*contents):
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


ROWS = [
    {"prompt": "Why?", "chosen": "Because it is so.", "rejected": "No."},
    {"prompt": turns("Hi", "Hello.", "2 + 2?"), "chosen": "4", "rejected": "I think that it is five, or six."},
    {"prompt": "Say it.", "chosen": turns("Say it.", "It is said."), "rejected": turns("Say it.", "Never!")},
    {"prompt": "Count.", "chosen": "one two three four five six seven eight nine ten", "rejected": "one"},
]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    """Saves a reward model of random weights; ``flat``: one that scores everything with 0."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    place = tmp_path_factory.mktemp("scorers")

    def make(seed=0, *, flat=False, labels=1):
        folder = place / f"{seed}-{flat}-{labels}"
        if folder.exists():
            return str(folder)
        config = AutoConfig.for_model(
            "llama", vocab_size=2048, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=256, pad_token_id=0, bos_token_id=None, eos_token_id=1,
        )  # fmt: skip
        config.num_labels = labels
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)
        with torch.no_grad():
            model.score.weight.normal_(std=0.0 if flat else 1.0)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return [{"path": str(path)}]


def plain_scores(model, tokenizer, talks):
    """By the model's own forward pass, one conversation at a time."""
    import torch

    found = []
    for talk in talks:
        text = tokenizer.apply_chat_template(talk, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            found.append(model(input_ids=ids).logits.item())
    return found


def talks_of(row):
    """Both whole conversations of a row."""
    asked = turns(row["prompt"]) if isinstance(row["prompt"], str) else row["prompt"]
    for answer in (row["chosen"], row["rejected"]):
        yield [*asked, {"role": "assistant", "content": answer}] if isinstance(answer, str) else answer


def margins_in(folder, side="tuned_value"):
    table = pq.read_table(Path(folder) / "results.parquet").to_pylist()
    return [row[side] for row in table if row["metric"] == "margin"]


def test_the_margins_of_rows_are_those_of_transformers(job, scorer, pairs, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = scorer()
    record = job(model=folder, data=pairs, **PAIRS).run()
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    scores = plain_scores(model, tokenizer, [talk for row in ROWS for talk in talks_of(row)])
    wanted = [chosen - rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]
    assert min(map(abs, wanted)) > 0.01, "or equality would say little"
    assert margins_in(tmp_path / "evaluation") == pytest.approx(wanted, abs=1e-5)
    found = {task.metric: task for task in record.tasks}
    assert found["margin"].tuned.value == pytest.approx(sum(wanted) / 4, abs=1e-5)
    accuracy = found["preference_accuracy"].tuned
    assert accuracy.value == sum(margin > 0 for margin in wanted) / 4
    assert accuracy.low < accuracy.value < accuracy.high or accuracy.value in (0, 1)
    assert record.models.tuned.kind == "reward model" and found["log_loss"].higher_is_better is False
    report = (tmp_path / "evaluation" / "report.html").read_text()
    assert "Because it is so." in report and "log loss" in report


def test_without_tasks_the_columns_are_those_of_training(job, scorer, tmp_path):
    rows = [{"ask": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in ROWS[:2]]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    data = [{"path": str(tmp_path / "other.jsonl"), "columns": columns}]
    job(model=scorer(), data=data, target="source").run()
    task = {"kind": "preference", "data": [{"path": str(tmp_path / "other.jsonl")}], **columns, "chat": True}
    job(model=scorer(), tasks=[task], target="task").run()
    assert margins_in(tmp_path / "source") == margins_in(tmp_path / "task") != []


def test_two_reward_models_are_compared_row_by_row(job, scorer, pairs, tmp_path):
    record = job(model=scorer(1), data=pairs, **PAIRS | {"baseline": scorer(2)}).run()
    job(model=scorer(2), data=pairs, target="alone", **PAIRS).run()
    assert margins_in(tmp_path / "evaluation", "base_value") == margins_in(tmp_path / "alone")
    assert record.models.baseline.name == scorer(2) and all(task.difference for task in record.tasks)


def test_ties_are_named_and_count_one_half(job, scorer, pairs):
    record = job(model=scorer(flat=True), data=pairs, **PAIRS).run()
    (found,) = [task for task in record.tasks if task.metric == "preference_accuracy"]
    assert found.tuned.value == 0.5 and found.note == "4 of 4 pairs are ties: each counts 0.5"


def test_what_was_scored_is_known_after_a_stop(job, scorer, pairs, monkeypatch, tmp_path):
    """Batches of one; the third one stops the evaluation. Another model's scores are not taken for these."""
    from tunekit.evaluate import scorer as engine

    asked, real = [], engine.last_scores

    def counted(model, rows):
        if len(asked) == 3 and not done:
            raise KeyboardInterrupt
        asked.append(rows)
        return real(model, rows)

    done = False
    monkeypatch.setattr(engine, "last_scores", counted)
    given = {"model": scorer(), "data": pairs, "engine": {"batch_size": 1}, **PAIRS}
    with pytest.raises(KeyboardInterrupt):
        job(**given).run()
    assert len(asked) == 3 and not (tmp_path / "evaluation").exists()
    done = True
    job(**given).run()
    assert len(asked) == 8
    job(target="again", **given).run()
    assert len(asked) == 8 and margins_in(tmp_path / "again") == margins_in(tmp_path / "evaluation")
    job(target="another", **given | {"model": scorer(7)}).run()
    assert len(asked) == 16


REFUSED = {
    "perplexity": ({"tasks": [{"kind": "perplexity"}, {"kind": "preference"}]}, "reward model: .* writes none"),
    "likelihood": ({"tasks": [{"kind": "preference", "by": "likelihood"}]}, "by: likelihood needs a model that writes"),
    "template": ({"tasks": [{"kind": "preference", "prompt": "Q: {q}"}]}, "'prompt' cannot be honoured for a reward"),
    "no prompt": ({"tasks": [{"kind": "preference", "prompt": None}]}, "'prompt' cannot be honoured"),
    "normalise": ({"tasks": [{"kind": "preference", "normalise": True}]}, "'normalise' cannot be honoured"),
    "no chat": ({"tasks": [{"kind": "preference", "chat": False}]}, "'chat' cannot be honoured"),
    "its base": ({"baseline": "base"}, "the base of a reward model has no head that scores"),
    "one that writes": ({"baseline": "builtin:tiny"}, "no common unit"),
    "labels": ({"labels": 3}, "gives 3 numbers, and a reward is one"),
    "causal by reward": ({"model": "builtin:tiny", "tasks": [{"kind": "preference", "by": "reward"}]},
                         "by: reward needs a reward model, and 'builtin:tiny' is none"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_reward_model_cannot_do_is_refused_before_it_is_loaded(case, job, scorer, pairs, monkeypatch, tmp_path):
    from tunekit.exam import models

    def never(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(models, "_loaded", never)
    given, what = REFUSED[case]
    value = {"model": scorer(labels=given.get("labels", 1)), "data": pairs, **PAIRS}
    with pytest.raises(UserError, match=what):
        job(**value | {key: one for key, one in given.items() if key != "labels"}).run()
    assert not (tmp_path / "evaluation").exists()


def test_rows_that_are_no_pairs_are_named(job, scorer, pairs, tmp_path):
    rows = [*ROWS, {"prompt": "Why?", "chosen": "So.", "rejected": "So."}]
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"model": scorer(), "data": [{"path": str(tmp_path / "same.jsonl")}], **PAIRS}
    record = job(**given, max_drop_rate=0.5).run()
    assert record.tasks[0].n == 4 and "same.jsonl:5: not evaluated: chosen and rejected are the same" in "".join(
        record.warnings
    )


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Trains by the command line on a few of the embedded preferences, holding out eight; the run's folder."""
    place = tmp_path_factory.mktemp("runs")

    def run(method, source="builtin:preferences", **sets):
        from tunekit.cli.app import app

        folder = place / method
        given = {
            "output.dir": str(folder), "data.max_length": 256, "data.eval.count": 8, "train.max_steps": 4,
            "train.batch_size": 4, "train.threads": 1, "train.precision": "fp32", "eval.baseline": False,
            "adapter": {"kind": "lora", "r": 4}, "train.learning_rate": 5e-3,
        } | {key.replace("__", "."): value for key, value in sets.items()}  # fmt: skip
        words = [word for key, value in given.items() for word in ("--set", f"{key}={json.dumps(value)}")]
        text = f"method: {method}\nmodel: {{name: builtin:tiny}}\ndata: {{train: [{{path: {source}, limit: 40}}]}}\n"
        (place / f"{method}.yaml").write_text(text)
        home = {"HF_HOME": str(place / "home"), "HF_HUB_OFFLINE": "1"}
        done = CliRunner().invoke(app, [method, str(place / f"{method}.yaml"), "--quiet", *words], env=home)
        assert done.exit_code == 0, done.output
        return folder

    return run


@pytest.mark.slow
def test_a_run_is_measured_as_by_itself(train, job, tmp_path):
    """Its own held-out pairs, the same rows from a file, and each score by PEFT and transformers alone."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from tunekit.data import world

    folder = train("reward")
    own = {task["metric"]: task for task in json.loads((folder / "record.json").read_text())["evaluation"]["tasks"]}
    record = job(model=str(folder), engine={"batch_size": 3}).run()
    assert {task.metric for task in record.tasks} == set(own) == {"preference_accuracy", "margin", "log_loss"}
    for task in record.tasks:
        assert task.n == 8 and task.tuned.value == pytest.approx(own[task.metric]["tuned"]["value"], abs=1e-5)
    assert record.contamination.checked == 8 and record.contamination.rows == ()
    table = pq.read_table(tmp_path / "evaluation" / "results.parquet").to_pylist()
    places = [int(row["where"].rpartition(":")[2]) for row in table if row["metric"] == "margin"]
    known = list(world.rows("preferences", "train", 40))
    rows = [known[place - 1] for place in places]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"data": [{"path": str(tmp_path / "pairs.jsonl")}], "contamination": {"check": False}}
    job(model=str(folder), target="file", **PAIRS, **given).run()
    base = AutoModelForSequenceClassification.from_pretrained(TINY, num_labels=1, dtype="float32")
    model, tokenizer = PeftModel.from_pretrained(base, folder / "model").eval(), AutoTokenizer.from_pretrained(TINY)
    scores = plain_scores(model, tokenizer, [talk for row in rows for talk in talks_of(row)])
    wanted = [chosen - rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]
    assert margins_in(tmp_path / "file") == pytest.approx(wanted, abs=1e-5)
    assert margins_in(tmp_path / "evaluation") == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
def test_held_out_pairs_of_a_run_that_writes_are_compared_by_likelihood(train, job):
    folder = train("dpo")
    own = {task["metric"]: task for task in json.loads((folder / "record.json").read_text())["evaluation"]["tasks"]}
    given = {"forgetting": {"check": False}, "contamination": {"check": False}}
    task = {"kind": "preference"}
    record = job(model=str(folder), tasks=[task], engine={"dtype": "float32"}, **given).run()
    for found in record.tasks:
        assert found.tuned.value == pytest.approx(own[found.metric]["tuned"]["value"], rel=1e-4, abs=1e-4)
    by_token = job(model=str(folder), tasks=[task | {"normalise": True}], target="token", **given).run()
    assert [found.note for found in by_token.tasks if found.metric == "margin"] == ["nats a token"]
    with pytest.raises(UserError, match="reads columns, which a run's held-out rows no longer have"):
        job(model=str(folder), tasks=[task | {"chosen": "good"}], target="named", **given).run()


def test_held_out_rows_of_one_answer_are_no_pairs(train, job):
    folder = train("sft", "builtin:instructions", data__packing=False)
    with pytest.raises(UserError, match="compares two answers, and the run's held-out rows have one"):
        job(model=str(folder), tasks=[{"kind": "preference"}]).run()


def test_a_reward_model_gives_scores_alone_and_a_model_that_writes_none(scorer, folders):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from tunekit.core.progress import Silent
    from tunekit.evaluate.contract import Conversation, Likelihood, Prompt
    from tunekit.evaluate.local import TransformersEngine
    from tunekit.evaluate.scorer import ScoringEngine

    judge = ScoringEngine(AutoModelForSequenceClassification.from_pretrained(scorer()), None)
    for ask in (lambda: judge.generate([Prompt((1,), 1)], Silent(), "x"),
                lambda: judge.likelihoods([Likelihood((1, 2), (False, True))], Silent(), "x")):  # fmt: skip
        with pytest.raises(UserError, match="a reward model gives scores alone"):
            ask()
    writer = TransformersEngine(AutoModelForCausalLM.from_pretrained(folders / "base"), None)
    with pytest.raises(UserError, match="which a model that writes does not give"):
        writer.scores([Conversation((1, 2))], Silent(), "x")


def test_a_score_depends_on_no_batch_and_on_no_pad_token(scorer):
    """transformers looks for the last token that does not pad; an answer may end with just that one."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from tunekit.core.progress import Silent
    from tunekit.evaluate.contract import Conversation
    from tunekit.evaluate.scorer import ScoringEngine

    model = AutoModelForSequenceClassification.from_pretrained(scorer())
    texts = [(5, 6, 7, 0), (9,) * 40, (8, 0), (3,)]  # 0 pads
    with torch.no_grad():
        wanted = [model.score(model.model(torch.tensor([ids])).last_hidden_state)[0, -1, 0].item() for ids in texts]
        assert model(torch.tensor([texts[0]])).logits.item() != pytest.approx(wanted[0], abs=1e-3)  # the fault
    for size, tokens in ((1, 8), (2, 4096), (4, 50)):
        engine = ScoringEngine(model, None, batch_size=size, batch_tokens=tokens)
        found = engine.scores([Conversation(ids) for ids in texts], Silent(), "x")
        assert [score.value for score in found] == pytest.approx(wanted, abs=1e-5)
