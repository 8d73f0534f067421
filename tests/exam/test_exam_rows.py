"""Rows of an evaluation: every form of data, a run's own held-out rows, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections import Counter

import pytest
from typer.testing import CliRunner

from tunekit.core.errors import DataError, UserError
from tunekit.exam import rows
from tunekit.exam.report_rows import read_results
from tunekit.recipe.schema import SourceBlock

QUIET = {"forgetting": {"check": False}, "contamination": {"check": False}, "baseline": None}
PERPLEXITY, GENERATION = {"kind": "perplexity"}, {"kind": "generation", "max_new_tokens": 4}


@pytest.fixture
def write(tmp_path):
    """Writes json lines; a text stands as it is."""

    def to(name, values):
        lines = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return [{"path": str(tmp_path / name)}]

    return to


@pytest.fixture
def tiny(job):
    """Evaluates the embedded model on rows; gives the record and the rows of the results."""

    def run(data, *tasks, **more):
        work = job(model="builtin:tiny", data=data, tasks=list(tasks) or [PERPLEXITY], **QUIET | more)
        return work.run(), read_results(work.target)

    return run


def pairs(count):
    return [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(count)]


def talk(*turns):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": text} for at, text in enumerate(turns)]}


# ---- forms -----------------------------------------------------------------------------------------------------------

FORMS = {
    "messages": lambda n: talk(f"What is {n}?", f"It is {n}."),
    "pairs": lambda n: pairs(n + 1)[n],
    "alpaca": lambda n: {"instruction": f"What is {n}?", "input": "", "output": f"It is {n}."},
}


def test_every_form_of_a_row_is_the_same_row(tiny, write, tmp_path):
    found = {}
    for number, (name, form) in enumerate(FORMS.items()):
        found[name] = tiny(write(f"{name}.jsonl", map(form, range(3))), PERPLEXITY, GENERATION, target=str(number))[0]
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "completion"), *((p["prompt"], p["completion"]) for p in pairs(3))])
    found["csv"] = tiny([{"path": str(tmp_path / "table.csv")}], PERPLEXITY, GENERATION, target="csv")[0]
    numbers = {name: [task.tuned for task in record.tasks] for name, record in found.items()}
    assert all(value == numbers["messages"] for value in numbers.values()), numbers


def test_several_turns_ask_for_the_last_answer(tiny, write):
    _, found = tiny(write("talk.jsonl", [talk("one?", "two", "three?", "four")]), PERPLEXITY, GENERATION)
    assert [row["reference"] for row in found] == ["four"] * 2
    assert found[1]["prompt"] == "user: one?\nassistant: two\nuser: three?"


def test_texts_of_other_scripts_are_kept_whole(tiny, write):
    right = "👩‍👩‍👧 नमस्ते \u202e\x00 ñ"
    _, found = tiny(write("scripts.jsonl", [{"prompt": "你好 🎉", "completion": right}]), PERPLEXITY, GENERATION)
    assert {(row["prompt"], row["reference"]) for row in found} == {("你好 🎉", right)}


def test_a_text_longer_than_the_positions_is_read_in_windows(tiny, tmp_path):
    (tmp_path / "long.txt").write_text("the short text\n" + "river stone " * 220 + "\n")
    record, found = tiny([{"path": str(tmp_path / "long.txt")}])
    assert record.tasks[0].n == 2 and found[1]["weight"] > 1024  # tokens, of a model of 1024 positions


def test_a_prompt_that_fills_the_positions_is_named(tiny, write):
    data = write("long.jsonl", [*pairs(1), {"prompt": "river stone " * 900, "completion": "a"}])
    with pytest.raises(DataError, match="the prompt fills the model's 1024 positions") as refused:
        tiny(data, GENERATION)
    assert refused.value.problems[0].where.endswith("long.jsonl:2")


def test_the_same_file_twice_counts_twice(tiny, write):
    data = write("pairs.jsonl", pairs(3)) * 2
    record, found = tiny(data, PERPLEXITY, GENERATION)
    assert [task.n for task in record.tasks] == [6, 6]
    assert set(Counter((row["task"], row["where"]) for row in found).values()) == {2}


def test_a_limit_draws_the_same_rows_for_every_task(tiny, write):
    record, found = tiny(write("pairs.jsonl", pairs(9)), PERPLEXITY, GENERATION, limit=4)
    assert [task.n for task in record.tasks] == [4, 4]
    assert len({row["where"] for row in found}) == 4


# ---- rows that cannot be used ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "task", "why"),
    [
        ("{broken", PERPLEXITY, "not JSON"),
        ({"prompt": "What?", "completion": ""}, PERPLEXITY, "column 'completion' is empty"),
        ({"prompt": "", "completion": "It."}, GENERATION, "column 'prompt' is empty"),
    ],
)
def test_lost_rows_are_told_and_bounded(tiny, write, bad, task, why):
    data = write("rows.jsonl", [*pairs(4), bad])
    with pytest.raises(DataError, match="1 of 5 evaluation rows cannot be used; 5% are allowed") as refused:
        tiny(data, task)
    assert refused.value.problems[1].where.endswith("rows.jsonl:5") and why in refused.value.problems[1].what
    record, _ = tiny(data, task, max_drop_rate=0.2)
    assert record.tasks[0].n == 4
    assert any("rows.jsonl:5: not evaluated" in text for text in record.warnings)


def test_rows_without_an_answer_are_lost_to_generation_alone(tiny, write, tmp_path):
    (tmp_path / "plain.txt").write_text("one text\n")
    data = [*write("pairs.jsonl", pairs(3)), {"path": str(tmp_path / "plain.txt")}]
    with pytest.raises(DataError, match="1 of 4 evaluation rows cannot be used") as refused:
        tiny(data, GENERATION)
    assert refused.value.problems[1].what == "it has no prompt with an answer, which this task needs"
    record, _ = tiny(data, PERPLEXITY, GENERATION, max_drop_rate=0.5)
    assert [task.n for task in record.tasks] == [4, 3]


def test_when_no_row_is_left_nothing_is_evaluated(tiny, write):
    with pytest.raises(DataError, match="the evaluation set is empty"):
        tiny(write("rows.jsonl", [{"prompt": "a", "completion": ""}] * 2), max_drop_rate=1)


@pytest.mark.parametrize("metric", ["ece", {"ece": {}}])
@pytest.mark.parametrize("task", [{"kind": "generation"}, {"kind": "questions", "prompt": "{prompt}",
                                                           "reference": "completion"}])  # fmt: skip
def test_a_metric_of_probabilities_is_refused_before_a_model_is_loaded(tiny, write, monkeypatch, metric, task):
    from tunekit.exam import models

    monkeypatch.setattr(models, "asked", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match="metric 'ece' needs the probability of each answer"):
        tiny(write("pairs.jsonl", pairs(3)), task | {"metrics": [metric]})


@pytest.mark.parametrize(
    ("name", "task", "more"),
    [
        ("math/gsm8k_test.first660.jsonl", GENERATION | {"metrics": ["numeric_answer"]}, {}),
        ("sft/lf_identity.json", PERPLEXITY, {}),
        ("sft/e2e_devset.first3000.csv", PERPLEXITY, {"columns": {"prompt": "mr", "completion": "ref"}}),
    ],
)
def test_real_rows(tiny, shared_data, name, task, more):
    path = shared_data / name
    if not path.exists():
        pytest.skip(f"not on this machine: {path}")
    record, found = tiny([{"path": str(path), "limit": 30} | more], task, limit=3)
    assert record.tasks[0].n == 3 and all(row["reference"] and row["prompt"] for row in found)


# ---- a run's own rows ------------------------------------------------------------------------------------------------

TRAINING = """\
method: sft
model: {name: builtin:tiny}
data:
  train: [{path: rows.jsonl}]
  max_length: 64
  eval: {fraction: 0.3}
train: {max_steps: 1, batch_size: 4, threads: 1}
eval: {baseline: false}
"""
STREAM = ("eval: {fraction: 0.3}", "streaming: true\n  eval: [{path: held.jsonl}]")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run and a streaming one, beside their data and the cache."""
    from tunekit.cli.app import app

    place = tmp_path_factory.mktemp("trained")
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(20)))
    (place / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(25)[20:]))
    for name, text in (("run", TRAINING), ("stream", TRAINING.replace(*STREAM))):
        (place / f"{name}.yaml").write_text(text)
        words = [str(place / f"{name}.yaml"), "--quiet", "--set", f"output.dir={place / name}"]
        done = CliRunner().invoke(app, ["sft", *words], env={"HF_HOME": str(place / "home")})
        assert done.exit_code == 0, done.output
    return place


@pytest.fixture
def place(trained, tmp_path):
    """A copy that may be changed."""
    shutil.copytree(trained, tmp_path / "place")
    for name in ("run", "stream"):
        plan = tmp_path / "place" / name / "plan.json"
        text = plan.read_text().replace(str(trained), str(tmp_path / "place"))
        plan.write_text(text.replace(os.path.relpath(trained), os.path.relpath(tmp_path / "place")))
    return tmp_path / "place"


@pytest.fixture
def held(place, monkeypatch):
    """The places of a run's held-out rows."""
    from tunekit.core.progress import Silent
    from tunekit.runs.layout import RunFolder

    monkeypatch.setenv("HF_HOME", str(place / "home"))

    def read(name="run"):
        return [item.where.rpartition("/")[2] for item in rows.held_out(RunFolder(place / name), Silent())]

    return read


def ledger_of(run):
    from tunekit.data.ledger import Ledger

    ledger = Ledger.load(run / "ledger.parquet")
    return {str(entry.origin).rpartition("/")[2] for entry in ledger if entry.split == "eval"}


@pytest.mark.slow
def test_the_same_rows_prepared_for_a_recipe_that_holds_out_others_are_not_taken(held, place):
    """Their content, and so their fingerprint, is the same; the run's own are gone from the cache."""
    from tunekit.cli.app import app

    before = held()
    shutil.rmtree(place / "home")
    (place / "other.yaml").write_text((place / "run.yaml").read_text().replace("fraction: 0.3", "count: 1"))
    words = [str(place / "other.yaml"), "--quiet", "--set", f"output.dir={place / 'other'}"]
    assert CliRunner().invoke(app, ["sft", *words], env={"HF_HOME": str(place / "home")}).exit_code == 0
    assert len(held("other")) == 1 and held() == before


def test_the_rows_are_those_of_the_ledger(held, place):
    assert set(held()) == ledger_of(place / "run")
    assert held("stream") == [f"held.jsonl:{n}" for n in range(1, 6)]


def test_without_the_cache_they_are_prepared_again_and_leave_no_trace(held, place):
    """Also where the run's folder cannot be written: nothing is."""
    before, kept = held(), sorted(path.name for path in (place / "run").rglob("*"))
    shutil.rmtree(place / "home")
    assert held() == before
    assert sorted(path.name for path in (place / "run").rglob("*")) == kept and not (place / "home").exists()


def test_a_source_that_is_gone_is_not_missed_while_the_cache_is_there(held, place):
    before = held()
    (place / "rows.jsonl").unlink()
    assert held() == before
    shutil.rmtree(place / "home")
    with pytest.raises(DataError, match=r"the run's data cannot be read again: .*rows\.jsonl"):
        held()


@pytest.mark.parametrize("change", ["turned", "longer"])
def test_a_source_that_changed_does_not_bring_other_rows(held, place, change):
    """In another order others are held out, of which the run trained on some."""
    before = held()
    path = place / "rows.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[::-1] if change == "turned" else [*lines, json.dumps(pairs(99)[98]) + "\n"]))
    assert held() == before
    shutil.rmtree(place / "home")
    with pytest.raises(DataError, match="the run's data is not what it was"):
        held()


def trained_on(place):
    from tunekit.runs.layout import RunFolder

    return {where.rpartition("/")[2] for _, where in rows.training_texts(RunFolder(place / "run"), (), place)}


def test_the_training_data_is_all_but_the_held_out_rows(held, place):
    assert trained_on(place) == {f"rows.jsonl:{n}" for n in range(1, 21)} - set(held())


def test_a_changed_source_is_not_taken_for_the_training_data(held, place):
    path = place / "rows.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[::-1]))
    with pytest.raises(DataError, match="the run's sources are not what they were"):
        trained_on(place)


@pytest.mark.parametrize("content", [None, b"PAR1"])
def test_without_its_ledger_a_run_is_evaluated_and_the_overlap_unknown(job, place, content):
    """Found after hours of answers, the missing file must not throw them away."""
    path = place / "run" / "ledger.parquet"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    work = job(model=str(place / "run"), baseline=None, forgetting={"check": False})
    record = work.run()
    assert record.contamination is None and record.tasks[0].n > 0
    assert any("whether rows were seen in training is not known" in text for text in record.warnings)


def test_a_task_that_reads_columns_needs_named_data(job, place):
    task = {"kind": "questions", "prompt": "{prompt}", "reference": "completion"}
    with pytest.raises(UserError, match="reads columns, which a run's held-out rows no longer have"):
        job(model=str(place / "run"), tasks=[task], **QUIET).run()


def test_a_plain_row_that_cannot_be_read_is_counted(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{broken\n{"a": 2}\n')
    tally = rows.Tally()
    found = list(rows.plain([SourceBlock(path="rows.jsonl")], tmp_path, tally))
    assert [row.values["a"] for row in found] == [1, 2]
    assert tally.read == 3 and [problem.where for problem in tally.lost] == ["rows.jsonl:2"]
