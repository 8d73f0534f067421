"""Metrics as modules of the evaluate library, whose import takes ten seconds: in this file only."""

from __future__ import annotations

import pytest

from tunekit.core.errors import UserError
from tunekit.evaluate.module import module
from tunekit.evaluate.scoring import score

pytestmark = pytest.mark.usefixtures("evaluate_cache")

GIVEN, RIGHT = ["今天天气好", "the cat sat", ""], ["今天天气很好", "the cat sat", "x"]
LISTS = [[text, "another"] for text in RIGHT]


@pytest.mark.parametrize("name", ["bleu", "rougeL", "exact_match", "f1", "wer", "cmrc_f1", "json_valid", "distinct"])
def test_compute_is_score(name):
    import evaluate

    metric = module(name)
    assert isinstance(metric, evaluate.Metric)
    wanted = score(name, {}, GIVEN, [(text,) for text in RIGHT]).number()
    assert metric.compute(predictions=GIVEN, references=RIGHT) == {name: pytest.approx(wanted, nan_ok=True)}
    several = score(name, {}, GIVEN, LISTS).number()
    assert metric.compute(predictions=GIVEN, references=LISTS) == {name: pytest.approx(several, nan_ok=True)}


def test_rows_one_by_one_and_in_batches():
    metric = module("exact_match", ignore_case=True)
    metric.add(prediction="A", reference="a")
    metric.add(prediction="b", reference="c")
    assert metric.compute() == {"exact_match": 0.5}
    metric.add_batch(predictions=["a", "b"], references=[["x", "a"], ["b"]])
    metric.add(prediction="a", reference=["b"])
    assert metric.compute() == {"exact_match": pytest.approx(2 / 3)}


def test_combined():
    import evaluate

    both = evaluate.combine([module("chrf", word_order=2), module("rouge1"), module("cer")])
    found = both.compute(predictions=GIVEN, references=RIGHT)
    wanted = {
        name: score(name, options, GIVEN, [(text,) for text in RIGHT]).number()
        for name, options in (("chrf", {"word_order": 2}), ("rouge1", {}), ("cer", {}))
    }
    assert found == pytest.approx(wanted)


def test_probabilities_and_samples():
    ece = module("ece").compute(predictions=["a", "b"], references=["a", "a"], probabilities=[0.9, 0.6])
    assert ece == {"ece": pytest.approx(0.35)}
    passed = module("pass_at_k", allow_code_execution=True)
    assert passed.compute(predictions=[["x = 1", "x = 2"]], references=["assert x == 1"]) == {"pass_at_k": 0.5}


def test_refusals():
    with pytest.raises(UserError, match="unknown metric 'bluu'"):
        module("bluu")
    with pytest.raises(UserError, match="has no option 'lower'"):
        module("bleu", lower=True)
