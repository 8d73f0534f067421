from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest
from pydantic import ValidationError

from tunekit.core.errors import DataError, UserError
from tunekit.core.registry import METRICS
from tunekit.evaluate import extras
from tunekit.evaluate.metrics import contains, exact_match, numeric_answer
from tunekit.evaluate.metrics.numeric_answer import last_number
from tunekit.evaluate.scoring import Scores, check, config_of, score
from tunekit.evaluate.text import words

# options without which a metric says nothing, and a right answer that suits it, with a number and beyond ASCII
OPTIONS = {"json_schema": {"schema": {"type": "string"}}, "pass_at_k": {"allow_code_execution": True}}
RIGHT = {"json_schema": '"5 好"', "json_equal": '"5 好"', "json_valid": '"5 好"', "pass_at_k": "assert '好' > '5'"}
UNDECIDED = {"distinct", "repetition"}  # an answer without words says nothing of them
# an answer before the tests; no correlation with one class; no answer takes nothing from those that are right
EMPTY_IS_NO_WORSE = {"pass_at_k", "mcc", "precision"}
PERFECT = {"mcc": 0, "bleu": 100, "chrf": 100, "ter": 0, "wer": 0, "cer": 0, "ece": 0.05, "repetition": 0}


@pytest.mark.parametrize("name", METRICS.names)
def test_every_metric_keeps_the_contract(name):
    metric = METRICS.load(name)
    config = config_of(name, OPTIONS.get(name, {}))
    right = RIGHT.get(name, "5 äpfel 好 mit fünf kernen")
    assert METRICS.help(name).endswith(".")
    assert isinstance(metric.HIGHER_IS_BETTER, bool)
    assert hasattr(metric, "score") != hasattr(metric, "totals")
    with pytest.raises(ValidationError):
        type(config)(unknown=1)
    with pytest.raises(ValidationError, match="frozen"):
        config.unknown = 1

    def scored(predictions, references):
        return score(name, OPTIONS.get(name, {}), predictions, references, probabilities=[0.95] * len(predictions))

    check(name, OPTIONS.get(name, {}), [(right, right)])
    perfect = scored([right, right], [(right,), ("0" if name == "numeric_answer" else right, right)])
    assert perfect.name == name and perfect.higher_is_better is metric.HIGHER_IS_BETTER
    assert perfect.number() == pytest.approx(PERFECT.get(name, 1))
    assert len(perfect.values) == 2 and len(perfect.totals) in (0, 2)
    both = scored([right, ""], [(right,), (right,)])
    if name in UNDECIDED:
        assert both.number() == perfect.number() and math.isnan(both.values[1])
    elif name not in EMPTY_IS_NO_WORSE:
        assert (both.number() < perfect.number()) is metric.HIGHER_IS_BETTER
    assert scored([], []).values == ()
    with pytest.raises(AssertionError):
        scored(["a"], [(right,), (right,)])


@pytest.mark.parametrize("name", [name for name in METRICS.names if hasattr(METRICS.load(name), "totals")])
def test_totals_give_the_number_of_any_rows_and_of_many_resamples_at_once(name):
    rng = random.Random(name)
    answers = ["ham", "spam", "eggs", "the long 答案 here", "a long answer here", ""]
    given = [rng.choice(answers) for _ in range(30)]
    right = [(rng.choice(answers[:5]),) for _ in range(30)]
    chance = [rng.random() for _ in range(30)]
    whole = score(name, {}, given, right, probabilities=chance)
    table = np.array(whole.totals)
    assert whole.statistic(table.sum(axis=0, keepdims=True))[0] == pytest.approx(whole.number())
    weights = np.random.default_rng(0).multinomial(30, [1 / 30] * 30, size=7)
    found = whole.statistic((weights @ table).astype(float))
    for row, number in zip(weights, found, strict=True):
        drawn = [index for index, times in enumerate(row) for _ in range(times)]
        part = score(
            name, {}, [given[i] for i in drawn], [right[i] for i in drawn], probabilities=[chance[i] for i in drawn]
        )
        if name != "mcc":  # with fewer rows more labels are beside the classes, which it holds for one
            assert number == pytest.approx(part.number(), nan_ok=True)


def test_number_of_a_mean_and_of_sums():
    assert Scores((1.0, 0.0), (), "mean", "", True, "x").number() == 0.5
    ratio = Scores((0.0, 0.0), ((1.0, 2.0), (2.0, 4.0)), lambda sums: sums[:, 0] / sums[:, 1], "", True, "x")
    assert ratio.number() == 0.5
    assert math.isnan(Scores((), (), "mean", "", True, "x").number())


def test_wrong_options_are_told_with_the_nearest_name():
    with pytest.raises(UserError, match="option 'max_order' of metric 'bleu'") as caught:
        check("bleu", {"tokenise": "zh", "max_order": 0}, ())
    assert "did you mean 'tokenize'?" in [problem.fix for problem in caught.value.problems]
    assert "metric 'bleu' has no option 'tokenise'" in str(caught.value) and "it is 0" in str(caught.value)
    with pytest.raises(UserError, match="unknown metric 'blue'"):
        check("blue", {}, ())
    with pytest.raises(UserError, match="option 'n' of metric 'distinct'"):
        score("distinct", {"n": "two"}, ["a"], [()])
    with pytest.raises(UserError, match="metric 'f1': average: binary and positive"):
        check("f1", {"average": "binary"}, ())
    with pytest.raises(UserError, match="either schema or path"):
        check("json_schema", {}, ())


def test_rows_without_an_answer():
    with pytest.raises(DataError, match="needs a right answer") as caught:
        check("rougeL", {}, [("a",), ()])
    assert caught.value.problems[0].where == "evaluation row 2"
    check("json_valid", {}, [()])
    assert score("json_valid", {}, ["{}"], [()]).values == (1.0,)
    with pytest.raises(AssertionError, match="tuple of texts"):
        score("exact_match", {}, ["a"], ["a"])


def test_a_missing_package_is_told(monkeypatch):
    with pytest.raises(UserError, match="metric 'x' needs the package 'no_such_package'") as caught:
        extras.need("no_such_package.inner", "eval", "metric 'x'")
    assert caught.value.fix == "pip install 'tunekit[eval]'"
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    with pytest.raises(UserError, match="metric 'bleu' needs the package 'sacrebleu'"):
        check("bleu", {}, ())


def test_words():
    assert words("Don't x_y, naïve CAFÉ 3.5%") == ["don", "t", "x", "y", "naïve", "café", "3", "5"]
    assert words("naïve", ascii_latin=True) == ["na", "ve"]
    assert words("我有１２个 iPhone。") == ["我", "有", "12", "个", "iphone"]
    assert words("Привет, мир! नमस्ते 한국어 문장") == ["привет", "мир", "नमस्ते", "한국어", "문장"]
    assert words("") == words(" …!\n") == []


def test_exact_match():
    def same(prediction, *references, **options):
        return exact_match.score([prediction], [references], exact_match.Config(**options)) == [1.0]

    assert same(" Paris\n", "Paris")
    assert same("Paris", "Rome", "Paris")
    assert not same(" Paris", "Paris", strip=False)
    assert not same("paris", "Paris")
    assert same("paris", "Paris", ignore_case=True)
    assert same("STRASSE", "straße", ignore_case=True)
    assert not same("１２", "12")
    assert same("１２", "12", normalize="nfkc")
    assert not same("Paris.", "Paris")


def test_contains():
    config = contains.Config()
    assert contains.score(["It is Paris.", "It is Rome."], [("Paris",), ("Paris",)], config) == [1.0, 0.0]
    assert contains.score(["It is Rome."], [("Paris", "Rome")], config) == [1.0]
    assert contains.score(["PARIS"], [("paris",)], contains.Config(ignore_case=True)) == [1.0]
    with pytest.raises(DataError, match="empty reference") as caught:
        contains.score(["anything", "b"], [("a",), ("a", " ")], config)
    assert caught.value.problems[0].where == "evaluation row 2"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        ("the answer is 42.", 42),
        ("first 3, then 5", 5),
        ("1,234,567 people", 1234567),
        ("1,2,3", 3),
        ("1234,567", 567),
        ("x = -3.5", Fraction(-7, 2)),
        ("x = −3", -3),
        ("8-3", 3),
        ("8 - 3", 3),
        ("2024-05", 5),
        ("-$12", -12),
        ("$1,200.50", Fraction(2401, 2)),
        (".5", Fraction(1, 2)),
        ("2/6", Fraction(1, 3)),
        ("-1 / 4", Fraction(-1, 4)),
        ("1.5e3", 1500),
        ("2e-2", Fraction(1, 50)),
        ("50%", 50),
        ("共有３，５００元", 3500),
        ("小明有5，120是小红的", 120),
        ("答案是－１２．５", Fraction(-25, 2)),
        ("２／６", Fraction(1, 3)),
        ("so 5 * 4 = 20\n#### 20", 20),
        ("#### 72\nwhich is 6 dozen", 72),
        ("no number", None),
        ("x²", None),
        ("1/0", None),
        ("", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


def test_a_babbled_number_of_any_length_is_read():
    assert last_number("1" * 9000) == (10**9000 - 1) // 9


def test_numeric_answer():
    def given(predictions, references, **options):
        config = numeric_answer.Config(**options)
        return numeric_answer.score(predictions, [(text,) for text in references], config)

    assert given(["It is 1,000.0", "1/3", "none"], ["1000", "2/6", "7"]) == [1.0, 1.0, 0.0]
    assert given(["0.333"], ["1/3"]) == [0.0]
    assert given(["0.333"], ["1/3"], relative_tolerance=0.01) == [1.0]
    assert numeric_answer.score(["7"], [("6", "7.0")], numeric_answer.Config()) == [1.0]
    with pytest.raises(DataError, match="no number"):
        given(["7"], ["seven"])
