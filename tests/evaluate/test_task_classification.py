import csv
import json
import math
from types import SimpleNamespace

import pytest
from pydantic import BaseModel, ValidationError
from scripted_engine_for_tests import Scripted, rows

from tunekit.core.errors import DataError, UserError
from tunekit.core.progress import Silent
from tunekit.core.registry import METRICS, TASKS

task = TASKS.load("classification")
ASK = {"prompt": "{text} ->", "labels": ["good", "bad"], "metrics": ["exact_match"]}
ROW = {"text": "fine", "label": "good"}
WORTH = {("fine ->", " good"): -3.0, ("fine ->", " bad"): -2.0, ("N/A ->", " good"): -5.0, ("N/A ->", " bad"): -2.5}


def run(engine, items, **options):
    found = task.run(engine, items, task.Config(**options), screen=Silent())
    return {result.metric: result for result in found}


def refused(items, **options):
    with pytest.raises((DataError, UserError)) as error:
        task.check(items, task.Config(**options))
    return error.value


@pytest.mark.parametrize(
    ("options", "chosen", "chance"),
    [
        ({}, "bad", 1 / (1 + math.exp(-1))),  # -3, -2
        ({"normalise": True}, "bad", 1 / (1 + math.exp(-3 / 4 + 2 / 3))),  # -0.75, -0.67
        ({"calibrate": True}, "good", 1 / (1 + math.exp(-1.5))),  # 2, 0.5
        ({"calibrate": True, "normalise": True}, "good", 1 / (1 + math.exp(1 / 6 - 1 / 2))),  # 2/4, 0.5/3
    ],
)
def test_by_hand(options, chosen, chance, monkeypatch):
    got = []

    class Options(BaseModel):
        pass

    def score(predictions, references, config, probabilities):
        got.append((list(predictions), list(references), list(probabilities)))
        return [0.0]

    fake = SimpleNamespace(Config=Options, HIGHER_IS_BETTER=True, NEEDS_PROBABILITY=True, score=score)
    own = type(METRICS).load
    monkeypatch.setattr(type(METRICS), "load", lambda self, name: fake if name == "fake" else own(self, name))
    engine = Scripted(WORTH)
    found = run(engine, rows(ROW), **(ASK | {"metrics": ["exact_match", "fake"]}), **options)
    assert found["exact_match"].texts == (chosen,)
    assert found["exact_match"].values == (float(chosen == "good"),)
    assert got == [([chosen], [("good",)], [pytest.approx(chance, abs=1e-15)])]
    assert len(engine.asked) == (4 if "calibrate" in options else 2)
    item = found["exact_match"].items[0]
    assert (item.where, item.prompt_text, item.reference) == ("rows.jsonl:1", "fine ->", "good")


def test_the_prompt_without_content_is_asked_once():
    worth = {" good": -1.0, " bad": -2.0}
    engine = Scripted(worth)
    run(engine, rows(ROW, ROW, ROW), **ASK, calibrate=True, content_free="[]")
    assert [before for before, _ in engine.asked].count("[] ->") == 2 and len(engine.asked) == 8


def test_the_first_of_equals_is_taken_and_nan_chooses_none():
    assert run(Scripted({" good": -1.0, " bad": -1.0}), rows(ROW), **ASK)["exact_match"].texts == ("good",)
    found = run(Scripted({" good": math.nan, " bad": -1.0}), rows(ROW), **ASK)["exact_match"]
    assert found.texts == ("",) and found.values == (0.0,)


def test_labels_that_stand_for_the_data_s():
    items = rows({"text": "fine", "label": 1}, {"text": "fine", "label": 0})
    engine = Scripted({" good": -1.0, " bad": -2.0})
    found = run(engine, items, **(ASK | {"labels": {0: "bad", 1: "good"}}))["exact_match"]
    assert found.values == (1.0, 0.0) and found.texts == ("good", "good")
    assert [item.reference for item in found.items] == ["good", "bad"]


def test_labels_that_are_numbers_or_truth_values():
    assert task.Config(**(ASK | {"labels": [0, 1]})).labels == ("0", "1")
    engine = Scripted({" no": -1.0, " yes": -2.0})
    items = rows({"text": "fine", "label": True}, {"text": "fine", "label": False})
    found = run(engine, items, **(ASK | {"labels": {False: "no", True: "yes"}}))["exact_match"]
    assert found.values == (0.0, 1.0)


def test_labels_found_in_the_rows():
    items = rows({"text": "a", "kind": "x"}, {"text": "b", "kind": "y"}, {"text": "c", "kind": "x"})
    engine = Scripted({" x": -1.0, " y": -2.0})
    found = run(engine, items, prompt="{text}", label="kind", metrics=["exact_match"])["exact_match"]
    assert found.values == (1.0, 0.0, 1.0)
    assert "the rows have 1 (x)" in str(refused(items[::2], prompt="{text}", label="kind", metrics=["exact_match"]))


def test_accuracy_and_macro_f1_by_default():
    items = rows(*({"text": text, "label": label} for text, label in zip("abcd", ["good", "good", "good", "bad"])))
    engine = Scripted({" good": -1.0, " bad": -2.0})
    found = task.run(engine, items, task.Config(prompt="{text}", labels=["good", "bad"]), screen=Silent())
    assert [result.metric for result in found] == ["accuracy", "f1"]
    assert sum(found[0].values) / 4 == 0.75
    totals = [sum(column) for column in zip(*found[1].totals)]
    import numpy as np

    assert float(found[1].statistic(np.array([totals]))[0]) == pytest.approx((2 * 0.75 / 1.75) / 2)


def test_a_chat_has_no_separator():
    engine = Scripted({"good": -1.0, "bad": -2.0})
    run(engine, rows(ROW), **ASK, chat=True)
    assert engine.asked[0] == ("<user>fine -><assistant>", "good")


def test_examples(tmp_path):
    path = tmp_path / "shots.csv"
    path.write_text("text,label\nugly,0\n")
    engine = Scripted({" good": -1.0, " bad": -2.0})
    wish = ASK | {"labels": {"0": "bad", "1": "good"}, "few_shot": {"path": str(path)}}
    run(engine, rows({"text": "fine", "label": 1}), **wish)
    assert ("ugly -> bad\n\nfine ->", " good") in engine.asked
    error = refused(rows({"text": "fine", "label": 1}, {"text": "ugly", "label": 0}), **wish)
    assert "rows.jsonl:2: this row is one of the examples" in str(error)
    path.write_text("text,label\nugly,2\n")
    assert f"{path}:2: '2' is none of the 2 labels" in str(refused(rows({"text": "fine", "label": 1}), **wish))


@pytest.mark.parametrize(
    ("items", "options", "match"),
    [
        ([], ASK, "evaluation set is empty"),
        ([ROW], ASK | {"label": "lable"}, "no column 'lable'"),
        ([ROW], ASK | {"prompt": "{txt}"}, "no column 'txt'"),
        ([ROW | {"label": None}], ASK, "empty (null)"),
        ([ROW | {"label": "gud"}], ASK, "'gud' is none of the 2 labels"),
        ([ROW], ASK | {"metrics": ["acuracy"]}, "unknown metric 'acuracy'"),
        ([ROW], ASK | {"few_shot": {"path": "none.jsonl"}}, "no file 'none.jsonl'"),
    ],
)
def test_faults(items, options, match):
    assert match in str(refused(rows(*items), **options))


def test_all_bad_rows_are_told_at_once():
    error = refused(rows(ROW, ROW | {"label": "goood"}, ROW | {"text": None}, ROW | {"label": "ugly"}), **ASK)
    told = [(problem.where, problem.fix) for problem in error.problems]
    assert told == [
        ("rows.jsonl:3", "fill it, or leave the row out"),
        ("rows.jsonl:2", "did you mean 'good'?"),
        ("rows.jsonl:4", "known: bad, good"),
    ]


@pytest.mark.parametrize(
    "options", [{"labels": ["one"]}, {"labels": ["a", "a"]}, {"labels": {"0": "a", "1": "a"}}, {"labels": ["a", ""]}]
)
def test_wishes_that_cannot_be_are_refused(options):
    with pytest.raises(ValidationError):
        task.Config(**(ASK | options))


def test_every_field_is_described():
    assert all(field.description for field in task.Config.model_fields.values())


class Echo(Scripted):
    """Finds the label the likeliest that shares the most words with the text before it."""

    def likelihoods(self, requests, screen, what, done=lambda index, answer: None):
        self.worth = {}
        for request in requests:
            split = request.scored.index(True)
            before, text = ("".join(map(chr, part)) for part in (request.ids[1:split], request.ids[split:]))
            self.worth[before, text] = float(sum(word in before.lower() for word in text.strip().split("_")))
        return super().likelihoods(requests, screen, what, done)


def test_banking77(shared_data):
    folder = shared_data / "classification"
    with (folder / "banking77_test.csv").open(encoding="utf-8", newline="") as file:
        items = rows(*list(csv.DictReader(file))[::60])
    labels = json.loads((folder / "banking77_categories.json").read_text("utf-8"))
    found = run(Echo(), items, prompt="{text}", label="category", labels=labels, metrics=["exact_match"])["exact_match"]
    by_hand = []
    for row in items:
        shared = [sum(word in row.values["text"].lower() for word in label.split("_")) for label in labels]
        by_hand.append(labels[shared.index(max(shared))])
    assert list(found.texts) == by_hand and 0 < sum(found.values) < len(items) == 52
