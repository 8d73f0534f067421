from __future__ import annotations

from fractions import Fraction

import pytest
from pydantic import ValidationError

from tunekit.core.errors import DataError
from tunekit.core.registry import METRICS
from tunekit.evaluate.metrics import contains, exact_match, numeric_answer
from tunekit.evaluate.metrics.numeric_answer import last_number


@pytest.mark.parametrize("name", METRICS.names)
def test_every_metric_keeps_the_contract(name):
    metric = METRICS.load(name)
    assert METRICS.help(name).endswith(".")
    assert isinstance(metric.HIGHER_IS_BETTER, bool)
    assert metric.score(["5 apples", ""], ["5 apples", "5 apples"], metric.Config()) == [1.0, 0.0]
    with pytest.raises(ValidationError):
        metric.Config(unknown=1)
    with pytest.raises(ValidationError, match="frozen"):
        metric.Config().unknown = 1
    with pytest.raises(ValueError):
        metric.score(["a"], ["1", "2"], metric.Config())


def test_exact_match():
    def same(prediction, reference, **options):
        return exact_match.score([prediction], [reference], exact_match.Config(**options)) == [1.0]

    assert same(" Paris\n", "Paris")
    assert not same(" Paris", "Paris", strip=False)
    assert not same("paris", "Paris")
    assert same("paris", "Paris", ignore_case=True)
    assert same("STRASSE", "straße", ignore_case=True)
    assert not same("１２", "12")
    assert same("１２", "12", normalize="nfkc")
    assert not same("Paris.", "Paris")


def test_contains():
    assert contains.score(["It is Paris.", "It is Rome."], ["Paris", "Paris"], contains.Config()) == [1.0, 0.0]
    assert contains.score(["PARIS"], ["paris"], contains.Config(ignore_case=True)) == [1.0]
    with pytest.raises(DataError, match="empty reference"):
        contains.score(["anything"], [" "], contains.Config())


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
    config = numeric_answer.Config()
    assert numeric_answer.score(["It is 1,000.0", "1/3", "none"], ["1000", "2/6", "7"], config) == [1.0, 1.0, 0.0]
    assert numeric_answer.score(["0.333"], ["1/3"], config) == [0.0]
    assert numeric_answer.score(["0.333"], ["1/3"], numeric_answer.Config(relative_tolerance=0.01)) == [1.0]
    with pytest.raises(DataError, match="no number"):
        numeric_answer.score(["7"], ["seven"], config)
