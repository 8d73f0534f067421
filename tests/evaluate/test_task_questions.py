import json
import math
from types import SimpleNamespace

import pytest
from pydantic import BaseModel, ValidationError
from scripted_engine_for_tests import Scripted, rows

from tunekit.core.errors import DataError, UserError
from tunekit.core.progress import Silent
from tunekit.core.registry import METRICS, TASKS

task = TASKS.load("questions")
ASK = {"prompt": "Q: {q}\nA:", "reference": "a"}


def run(engine, items, **options):
    found = task.run(engine, items, task.Config(**options), screen=Silent())
    return {result.metric: result for result in found}


def refused(items, **options):
    with pytest.raises((DataError, UserError)) as error:
        task.check(items, task.Config(**options))
    return error.value


def test_by_hand():
    engine = Scripted(answers={"Q: 1+1\nA:": " 2", "Q: sky\nA:": "It is Blue."})
    items = rows({"q": "1+1", "a": 2}, {"q": "sky", "a": ["azure", "blue"]})
    wish = {"metrics": ["exact_match", {"contains": {"ignore_case": True}}], "max_new_tokens": 7, "stops": ["\n"]}
    found = run(engine, items, **ASK, **wish)
    assert found["exact_match"].values == (1.0, 0.0)
    assert found["contains"].values == (1.0, 1.0)
    assert found["contains"].texts == (" 2", "It is Blue.")
    assert [(item.where, item.prompt_text, item.reference) for item in found["contains"].items] == [
        ("rows.jsonl:1", "Q: 1+1\nA:", "2"),
        ("rows.jsonl:2", "Q: sky\nA:", "azure / blue"),
    ]
    request = engine.asked[0]
    assert (request.max_new_tokens, request.stops, request.temperature, request.seed) == (7, ("\n",), 0.0, 0)


def test_a_row_is_the_mean_over_seeds():
    prompt = "Q: x\nA:"
    engine = Scripted(answers={(prompt, 3): "a", (prompt, 5): "b", (prompt, 8): "a", (prompt, 9): "a"})
    found = run(engine, rows({"q": "x", "a": "a"}), **ASK, temperature=0.7, top_p=0.9, seeds=[3, 5, 8, 9])
    assert found["exact_match"].values == (0.75,) and found["exact_match"].texts == ("a",)
    assert [(request.seed, request.temperature, request.top_p) for request in engine.asked[:2]] == [
        (3, 0.7, 0.9),
        (5, 0.7, 0.9),
    ]


def test_samples_are_different_draws_under_every_seed():
    prompt = "Q: x\nA:"
    texts = ["a", "b", "b", "b", "b", "a"]
    engine = Scripted(answers={(prompt, seed): text for seed, text in enumerate(texts)})
    found = run(engine, rows({"q": "x", "a": "a"}), **ASK, temperature=1.0, samples=3, seeds=[0, 1])
    assert sorted(request.seed for request in engine.asked) == [0, 1, 2, 3, 4, 5]
    assert found["exact_match"].values == (pytest.approx(2 / 6),)


def test_a_metric_of_several_samples_gets_those_of_one_seed(monkeypatch):
    got = []

    class Options(BaseModel):
        pass

    def score(predictions, references, config):
        got.append(list(predictions))
        return [float("a" in row) for row in predictions]

    any_right = SimpleNamespace(Config=Options, HIGHER_IS_BETTER=True, NEEDS_SAMPLES=True, score=score)
    own = type(METRICS).load
    monkeypatch.setattr(type(METRICS), "load", lambda self, name: any_right if name == "any_right" else own(self, name))
    answers = {("Q: x\nA:", seed): text for seed, text in enumerate("abcd")}
    answers |= {("Q: y\nA:", seed): text for seed, text in enumerate("efga")}
    found = run(
        Scripted(answers=answers), rows({"q": "x", "a": "a"}, {"q": "y", "a": "a"}),
        **ASK, temperature=1.0, samples=2, seeds=[0, 1], metrics=["any_right"],
    )  # fmt: skip
    assert got == [[("a", "b"), ("e", "f")], [("c", "d"), ("g", "a")]]
    assert found["any_right"].values == (0.5, 0.5)


def test_totals_are_the_mean_over_seeds_too():
    pytest.importorskip("sacrebleu")
    answers = {("Q: x\nA:", 0): "the cat sat on the mat", ("Q: x\nA:", 1): "the dog sat on the mat"}
    items = rows({"q": "x", "a": "the cat sat on the mat"})
    both = run(Scripted(answers=answers), items, **ASK, temperature=1.0, seeds=[0, 1], metrics=["bleu"])["bleu"]
    ones = [
        run(Scripted(answers=answers), items, **ASK, temperature=1.0, seeds=[seed], metrics=["bleu"])["bleu"]
        for seed in (0, 1)
    ]
    assert both.totals[0] == pytest.approx([(a + b) / 2 for a, b in zip(ones[0].totals[0], ones[1].totals[0])])
    assert callable(both.statistic)


def test_system_turn_and_chat():
    engine = Scripted(answers={"<system>Short.<user>Q: x\nA:<assistant>": "y", "<user>Q: x\nA:<assistant>": "z"})
    items = rows({"q": "x", "a": "y"})
    assert run(engine, items, **ASK, chat=True, system="Short.")["exact_match"].texts == ("y",)
    assert engine.asked[0].messages == (("system", "Short."), ("user", "Q: x\nA:"))
    assert run(engine, items, **ASK, chat=True)["exact_match"].texts == ("z",)
    remote = Scripted(answers={"": "y"})
    remote.tokenizer = None
    assert run(remote, items, **ASK, chat=True, system="Short.")["exact_match"].texts == ("y",)
    assert remote.asked[0].ids == () and remote.asked[0].messages[0] == ("system", "Short.")


def test_examples(tmp_path):
    path = tmp_path / "shots.jsonl"
    path.write_text(json.dumps({"q": "0+1", "a": ["1", "one"]}) + "\n")
    engine = Scripted(answers={"Q: 0+1\nA: 1\n\nQ: 1+1\nA:": "2"})
    found = run(engine, rows({"q": "1+1", "a": "2"}), **ASK, few_shot={"path": str(path)})
    assert found["exact_match"].values == (1.0,)
    error = refused(rows({"q": "1+1", "a": "2"}, {"q": "0+1", "a": "1"}), **ASK, few_shot={"path": str(path)})
    assert "rows.jsonl:2: this row is one of the examples" in str(error)
    path.write_text(json.dumps({"q": "0+1", "answer": "1"}) + "\n")
    error = refused(rows({"q": "1+1", "a": "2"}), **ASK, few_shot={"path": str(path)})
    assert f"{path}:1: no column 'a'" in str(error)


GOOD = {"q": "x", "a": "y"}


@pytest.mark.parametrize(
    ("items", "options", "match"),
    [
        ([], ASK, "evaluation set is empty"),
        ([GOOD], ASK | {"reference": "b"}, "no column 'b'"),
        ([{"question": "x", "answer": "y"}], ASK | {"prompt": "{question}", "reference": "anser"}, "no column 'anser'"),
        ([GOOD | {"a": []}], ASK, "holds no answer"),
        ([GOOD | {"a": None}], ASK, "empty (null)"),
        ([GOOD | {"q": ""}], ASK | {"prompt": "{q}"}, "the prompt is empty"),
        ([GOOD], {"prompt": "{q}"}, "rows.jsonl:1: metric 'exact_match' needs a right answer"),
        ([GOOD], ASK | {"metrics": ["exact_macth"]}, "unknown metric 'exact_macth'"),
        ([GOOD], ASK | {"metrics": [{"exact_match": {"stripp": True}}]}, "no option 'stripp'"),
        ([GOOD], ASK | {"few_shot": {"path": "none.jsonl"}}, "no file 'none.jsonl'"),
    ],
)
def test_faults(items, options, match):
    assert match in str(refused(rows(*items), **options))


def test_all_bad_rows_are_told_at_once_also_by_metrics():
    error = refused(rows(GOOD, GOOD | {"a": ""}, GOOD | {"a": None}, GOOD), **ASK, metrics=["contains"])
    assert [problem.where for problem in error.problems] == ["rows.jsonl:3", "rows.jsonl:2"]


@pytest.mark.parametrize(
    "options",
    [
        {"samples": 2},
        {"seeds": [0, 1]},
        {"top_p": 0.5},
        {"temperature": 1.0, "seeds": [1, 1]},
        {"system": "x"},
        {"metrics": []},
        {"metrics": [{"contains": {}, "exact_match": {}}]},
        {"reference": None, "few_shot": {"path": "x"}},
        {"prompt": "{q"},
        {"stops": [""]},
    ],
)
def test_wishes_that_cannot_be_are_refused(options):
    with pytest.raises(ValidationError):
        task.Config(**(ASK | options))


def test_a_prompt_that_leaves_no_room_is_refused_by_row():
    engine = Scripted(answers={"Q: x\nA:": "y"}, positions=9)
    run(engine, rows(GOOD), **ASK)
    with pytest.raises(DataError, match=r"rows\.jsonl:2: 10 tokens"):
        run(engine, rows(GOOD, GOOD | {"q": "xx"}), **ASK)


def test_every_field_is_described():
    assert all(field.description for field in task.Config.model_fields.values())


def test_real_questions(shared_data):
    lines = (shared_data / "math" / "gsm8k_test.first660.jsonl").read_text("utf-8").splitlines()
    items = rows(*map(json.loads, lines))
    answers = {f"Question: {row.values['question']}\nAnswer:": row.values["answer"] for row in items}
    found = run(
        Scripted(answers=answers), items, prompt="Question: {question}\nAnswer:", reference="answer",
        metrics=["numeric_answer"],
    )  # fmt: skip
    assert math.fsum(found["numeric_answer"].values) == 660
    path = shared_data / "qa" / "nq_open_dev.jsonl"
    items = rows(*map(json.loads, path.read_text("utf-8").splitlines()[:50]))
    answers = {row.values["question"]: row.values["answer"][-1] for row in items}
    found = run(Scripted(answers=answers), items, prompt="{question}", reference="answer")
    assert math.fsum(found["exact_match"].values) == 50
