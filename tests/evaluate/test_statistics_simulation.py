"""How often the intervals hold the truth, how often there is a false alarm, how often a gain is seen: by simulation.

Every number is a share of simulated evaluations with fixed seeds; Monte Carlo error (two standard errors): 0.03 for a
95 % share of 200 seeds, 0.014 of 1,000 sets.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from tunekit.evaluate.statistics import (
    bootstrap_interval,
    mean,
    paired_difference,
    perplexity,
    verdict,
    weighted_mean,
)

SEEDS = 200
NOTHING = "no detectable difference"


@pytest.fixture(autouse=True)
def fewer_flips(monkeypatch):
    """p-values to 0.001 are enough to tell 0.05."""
    monkeypatch.setattr("tunekit.evaluate.resampling.SIGN_FLIPS", 999)


def correlation(sums):
    """Matthews correlation of counts (tp, fp, fn, tn)."""
    tp, fp, fn, tn = sums.T
    return (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))


def bleu(sums):
    """Of 4 columns of n-grams that match, 4 of all n-grams, and the lengths of answers and references."""
    precision = np.exp(np.log(sums[:, :4] / sums[:, 4:8]).mean(axis=1))
    return 100 * precision * np.exp(np.minimum(0, 1 - sums[:, 9] / sums[:, 8]))


def counted(gold, said):
    """0/1 truths and answers as rows of (tp, fp, fn, tn)."""
    return np.stack([gold & said, ~gold & said, gold & ~said, ~gold & ~said], axis=1).astype(float)


# Each world draws (base, tuned) for n rows; `gain` is by how much the tuned model is better on average.


def right_or_wrong(rng, n, gain=0.0):
    """Base right on 60 %; 3 % of rows are lost, 3 % and the gain are won, all other rows stay as they are."""
    kind = rng.choice(4, n, p=[0.57, 0.03, 0.03 + gain, 0.37 - gain])  # kept, lost, won, missed
    return np.isin(kind, (0, 1)).astype(float), np.isin(kind, (0, 2)).astype(float)


def sampled_twice(rng, n):
    """One model asked twice: rows differ in how hard they are, and each answer is drawn by itself."""
    easy = rng.beta(1, 0.7, n)
    return tuple((rng.random(n) < easy).astype(float) for _ in range(2))


def independent_errors(rng, n):
    """Two models, each right on 60 % of the rows, with nothing in common."""
    return tuple((rng.random(n) < 0.6).astype(float) for _ in range(2))


def scores(rng, n, gain=0.0):
    """Scores between 0 and 1, skewed, of mean 0.3; 4 of 10 rows are answered anew, which is where the gain is."""
    base = rng.beta(0.9, 2.1, n)
    centre = 0.3 + gain / 0.4
    return base, np.where(rng.random(n) < 0.4, rng.beta(3 * centre, 3 * (1 - centre), n), base)


def labels(rng, n, gain=0.0):
    """Counts of two classes at 70 % accuracy; every fourth row is labelled anew, which is where the gain is."""
    gold = rng.random(n) < 0.4
    right = rng.random(n) < 0.7
    anew = np.where(rng.random(n) < 0.25, rng.random(n) < 0.7 + gain / 0.25, right)
    return counted(gold, gold == right), counted(gold, gold == anew)


def independent_labels(rng, n):
    gold = rng.random(n) < 0.4
    return tuple(counted(gold, gold == (rng.random(n) < 0.7)) for _ in range(2))


def share(world, statistic, expected, *, n, **options):
    """Of how many seeds the verdict is ``expected``."""
    found = 0
    for seed in range(SEEDS):
        base, tuned = world(np.random.default_rng(seed), n, **options)
        corpus = base.ndim == 2
        difference = paired_difference(base, tuned, statistic, resamples=500, seed=seed, sums=corpus)
        found += verdict(difference, higher_is_better=True) == expected
    return found / SEEDS


@pytest.mark.parametrize(
    ("world", "statistic"), [(right_or_wrong, mean), (scores, mean), (labels, correlation)], ids=lambda f: f.__name__
)
def test_a_model_against_itself(world, statistic):
    for seed in range(20):
        base, _ = world(np.random.default_rng(seed), 100)
        found = paired_difference(base, base, statistic, resamples=500, seed=seed, sums=base.ndim == 2)
        assert (found.value, found.p_value) == (0, 1)
        assert verdict(found, higher_is_better=True) == NOTHING


@pytest.mark.parametrize(
    ("world", "statistic"),
    [
        (right_or_wrong, mean),
        (sampled_twice, mean),
        (scores, mean),
        (labels, correlation),
        (independent_errors, mean),
        (independent_labels, correlation),
    ],
    ids=lambda f: f.__name__,
)
def test_models_alike_show_no_difference(world, statistic):
    assert share(world, statistic, NOTHING, n=200) >= 0.92


@pytest.mark.parametrize(
    ("world", "statistic"), [(right_or_wrong, mean), (scores, mean), (labels, correlation)], ids=lambda f: f.__name__
)
def test_five_points_on_500_rows_are_seen(world, statistic):
    assert share(world, statistic, "better", n=500, gain=0.05) >= 0.80


# Skewed scores and ratios: each draws a table of n rows and tells the truth.


def lognormal(rng, n):
    return rng.lognormal(0, 1, (n, 1)), math.exp(0.5)


def mostly_zero(rng, n):
    return (rng.random((n, 1)) < 0.1) * rng.beta(2, 2, (n, 1)), 0.05


def near_one(rng, n):
    return rng.choice([0.0, 0.5, 1.0], (n, 1), p=[0.05, 0.05, 0.9]), 0.925


def outlying(rng, n):
    """One row in 20 is on average two thousand times the others."""
    return rng.exponential(1e-3, (n, 1)) + (rng.random((n, 1)) < 0.05) * rng.exponential(2, (n, 1)), 0.101


def word_errors(rng, n):
    """Errors of words, more in some rows than in others; two columns."""
    words = rng.integers(3, 40, n)
    return np.stack([rng.binomial(words, rng.beta(0.5, 3, n)), words], axis=1).astype(float), 0.5 / 3.5


def surprise(rng, n):
    """Nats and tokens; rows are of mean 2 nats a token, with a standard deviation of 1."""
    tokens = rng.integers(5, 200, n).astype(float)
    return np.stack([tokens * rng.gamma(4, 0.5, n), tokens], axis=1), math.exp(2)


def confusion(rng, n):
    chances = np.array([[0.3, 0.1, 0.15, 0.45]])
    return np.eye(4)[rng.choice(4, n, p=chances[0])], correlation(chances)[0]


def translations(rng, n):
    """Answers of 5 to 40 words, of which 60, 40, 25 and 16 % of the n-grams match, more in some rows than in others."""
    words = rng.integers(5, 41, n)
    totals = words[:, None] - np.arange(4)
    chances = np.array([0.6, 0.4, 0.25, 0.16])
    skill = rng.beta(4, 4, (n, 1)) + 0.5  # mean 1
    matches = rng.binomial(totals, chances * skill)
    length = words + rng.integers(-1, 4, n)
    expected = np.concatenate([chances * (22.5 - np.arange(4)), 22.5 - np.arange(4), [22.5, 23.5]])
    return np.column_stack([matches, totals, words, length]).astype(float), bleu(expected[None])[0]


def coverage(draw, statistic, n, sets=1000):
    """Share of the sets whose interval holds the truth; the more rows, the fewer resamples there is time for."""
    rng = np.random.default_rng(n)
    held = 0
    for seed in range(sets):
        table, truth = draw(rng, n)
        resamples, corpus = max(400, 50_000 // n), table.shape[1] > 2
        found = bootstrap_interval(table, statistic, resamples=resamples, seed=seed, sums=corpus)
        held += found.low <= truth <= found.high
    return held / sets


WORLDS = [
    (lognormal, mean),
    (mostly_zero, mean),
    (near_one, mean),
    (word_errors, weighted_mean),
    (surprise, perplexity),
    (confusion, correlation),
    (translations, bleu),
]


QUICK = (lognormal, word_errors, translations)  # at 200 rows: a mean, a ratio, a corpus metric


def cases():
    for draw, statistic in WORLDS:
        for n in (50, 200, 1000):
            marks = () if n == 50 or (n == 200 and draw in QUICK) else pytest.mark.slow
            yield pytest.param(draw, statistic, n, marks=marks, id=f"{draw.__name__}-{n}")


@pytest.mark.parametrize(("draw", "statistic", "n"), cases())
def test_intervals_hold_the_truth(draw, statistic, n):
    # 0.93 in 4,000 sets: the one case at the margin, less the Monte Carlo error of 1,000 sets
    least = 0.915 if (draw, n) == (lognormal, 50) else 0.93
    assert least <= coverage(draw, statistic, n) <= 0.97


def test_where_a_few_rows_carry_the_sum_the_interval_is_too_narrow():
    # the limit that the docstring tells, so that it stays true
    assert 0.75 <= coverage(outlying, mean, 50, sets=400) <= 0.85
