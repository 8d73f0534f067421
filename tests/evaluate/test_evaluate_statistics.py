"""Golden numbers are worked by hand, taken from tables, or counted out; coverage is simulated with a fixed seed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tunekit.evaluate.statistics import (
    Difference,
    bootstrap_interval,
    mcnemar_p_value,
    mean,
    paired_difference,
    perplexity,
    student_quantile,
    verdict,
    weighted_mean,
    wilson_interval,
)


def pairs(kept, gained, lost, missed):
    base = [1.0] * kept + [0.0] * gained + [1.0] * lost + [0.0] * missed
    tuned = [1.0] * kept + [1.0] * gained + [0.0] * lost + [0.0] * missed
    return base, tuned


def test_wilson_by_hand():
    # z = 2 makes the arithmetic plain: p = 1/2, n = 4: (1/2 + 4/8 ± 2 sqrt(1/16 + 1/16)) / 2 = 1/2 ± sqrt(1/8)
    confidence = math.erf(2 / math.sqrt(2))
    found = wilson_interval(2, 4, confidence)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - math.sqrt(0.125), 0.5 + math.sqrt(0.125)))


def test_wilson_keeps_a_width_when_all_rows_agree():
    # closed form at the ends: z² / (n + z²)
    z2 = 1.959963984540054**2
    assert wilson_interval(0, 20).high == pytest.approx(z2 / (20 + z2))
    assert wilson_interval(0, 20).low == 0.0
    assert wilson_interval(20, 20).low == pytest.approx(20 / (20 + z2))
    assert wilson_interval(20, 20).high == 1.0
    assert math.isnan(wilson_interval(0, 0).value)


@pytest.mark.parametrize(
    ("freedom", "table"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (10, 2.2281), (30, 2.0423)]
)
def test_student_quantile_is_the_table_s(freedom, table):
    assert student_quantile(0.975, freedom) == pytest.approx(table, rel=2e-3)


def test_mcnemar_by_hand():
    assert mcnemar_p_value(0, 0) == 1.0
    assert mcnemar_p_value(6, 0) == 2 / 64
    assert mcnemar_p_value(1, 6) == 2 * (1 + 7) / 128
    assert mcnemar_p_value(4, 12) == mcnemar_p_value(12, 4) == 2 * 2517 / 65536
    assert mcnemar_p_value(5, 5) == 1.0
    assert 0 <= mcnemar_p_value(4000, 3000) < 1e-20


def test_paired_proportions_against_another_implementation():
    # kept 89, gained 82, lost 21, missed 8: a published record gives Newcombe [0.2118, 0.3911] for this table
    found = paired_difference(*pairs(89, 82, 21, 8), seed=0)
    assert (found.value, found.low, found.high) == pytest.approx((0.305, 0.2118, 0.3911), abs=5e-5)
    assert found.p_value == mcnemar_p_value(82, 21)


def test_paired_proportions_by_hand():
    # nothing kept, gained or lost twice over, z = 2: both proportions 1/2 of n = 4, Wilson reach r = sqrt(1/8);
    # product -4, margins 16: phi = -1, so the reach is sqrt(r² + 2r² + r²) = 2r
    confidence = math.erf(2 / math.sqrt(2))
    found = paired_difference(*pairs(0, 2, 2, 0), confidence=confidence, seed=0)
    assert (found.value, found.low, found.high) == pytest.approx((0, -math.sqrt(0.5), math.sqrt(0.5)))


def test_sign_flip_is_the_exact_enumeration():
    rng = np.random.default_rng(3)
    base, tuned = rng.normal(0, 1, 8), rng.normal(0.8, 1, 8)
    changes = tuned - base
    sums = [abs(sum(s * c for s, c in zip(signs, changes))) for signs in itertools.product((-1, 1), repeat=8)]
    by_hand = sum(total >= abs(changes.sum()) - 1e-12 for total in sums) / 2**8
    assert paired_difference(base, tuned, seed=0).p_value == by_hand


def test_sign_flip_sampled_is_near_the_exact_p_of_equal_steps():
    # 20 rows, each half a point up or down, 15 up: the exact p-value is McNemar's of 15 and 5
    base, tuned = [0.5] * 20, [1.0] * 15 + [0.0] * 5
    assert paired_difference(base, tuned, seed=1).p_value == pytest.approx(mcnemar_p_value(15, 5), abs=0.006)


def test_bootstrap_by_hand_of_two_rows():
    # two rows 0 and 1: resampled means are 0, 1/2, 1; two rows give an interval over all of them
    found = bootstrap_interval([0.0, 1.0], seed=0)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)


def test_ratios_are_of_sums():
    table = np.array([[3.0, 1.0], [1.0, 3.0]])
    assert bootstrap_interval(table, weighted_mean, seed=0).value == 1.0
    assert bootstrap_interval(table, perplexity, seed=0).value == pytest.approx(math.e)


@pytest.mark.parametrize("kind", ["mean", "perplexity"])
def test_bootstrap_covers(kind):
    rng = np.random.default_rng(5)
    hits, rounds, n = 0, 1000, 60
    for seed in range(rounds):
        if kind == "mean":
            found, truth = bootstrap_interval(rng.normal(1, 2, n), mean, resamples=1000, seed=seed), 1.0
        else:
            tokens = rng.integers(5, 200, n).astype(float)
            table = np.stack([tokens * rng.gamma(8, 0.25, n), tokens], axis=1)  # 2 nats a token
            found, truth = bootstrap_interval(table, perplexity, resamples=1000, seed=seed), math.exp(2)
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / rounds <= 0.97


@pytest.mark.parametrize(("n", "p"), [(20, 0.1), (60, 0.5), (200, 0.95)])
def test_wilson_covers_on_average_over_nearby_proportions(n, p):
    # exact: the binomial is counted out, over a range of p because coverage jumps from one p to the next
    coverages = []
    for true in np.linspace(max(p - 0.04, 0.02), min(p + 0.04, 0.98), 41):
        chances = [math.comb(n, k) * true**k * (1 - true) ** (n - k) for k in range(n + 1)]
        inside = [wilson_interval(k, n).low <= true <= wilson_interval(k, n).high for k in range(n + 1)]
        coverages.append(sum(itertools.compress(chances, inside)))
    assert 0.93 <= np.mean(coverages) <= 0.97


def test_paired_proportions_cover():
    rng = np.random.default_rng(7)
    chances = [0.45, 0.25, 0.1, 0.2]  # kept, gained, lost, missed: a true difference of 0.15
    hits = 0
    for _ in range(2000):
        found = paired_difference(*pairs(*rng.multinomial(100, chances)), seed=0)
        hits += found.low <= 0.15 <= found.high
    assert 0.93 <= hits / 2000 <= 0.97


def test_no_false_alarms_beyond_the_level():
    rng = np.random.default_rng(11)
    alarms = 0
    for seed in range(300):
        base = rng.normal(0, 1, 10)
        found = paired_difference(base, base + rng.normal(0, 1, 10), seed=seed, resamples=500)
        alarms += verdict(found, higher_is_better=True) != "no detectable difference"
    assert alarms / 300 <= 0.07


def test_same_seed_same_numbers():
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap_interval(values, seed=4) == bootstrap_interval(values, seed=4)
    assert bootstrap_interval(values, seed=4) != bootstrap_interval(values, seed=5)
    assert paired_difference(values, values * 1.1, seed=4) == paired_difference(values, values * 1.1, seed=4)


def test_what_cannot_be_known_is_nan():
    assert math.isnan(bootstrap_interval([1.0, math.nan], seed=0).value)
    assert math.isnan(bootstrap_interval([], seed=0).value)
    alone = bootstrap_interval([2.0], seed=0)
    assert alone.value == 2.0 and math.isnan(alone.low) and math.isnan(alone.high)
    found = paired_difference([math.nan, 1.0], [1.0, 1.0], seed=0)
    assert math.isnan(found.value) and math.isnan(found.p_value)
    assert verdict(found, higher_is_better=True) is None


def test_an_overflowing_perplexity_is_infinite_and_judged_by_nobody():
    table = np.array([[1e4, 1.0], [2e4, 1.0]])
    assert bootstrap_interval(table, perplexity, seed=0).value == math.inf
    assert verdict(paired_difference(table, table, perplexity, seed=0), higher_is_better=False) is None


def test_verdict_needs_test_and_interval():
    assert verdict(Difference(0.2, 0.1, 0.3, 0.01), higher_is_better=True) == "better"
    assert verdict(Difference(0.2, 0.1, 0.3, 0.01), higher_is_better=False) == "worse"
    assert verdict(Difference(-0.2, -0.3, -0.1, 0.01), higher_is_better=False) == "better"
    assert verdict(Difference(0.2, -0.1, 0.3, 0.01), higher_is_better=True) == "no detectable difference"
    assert verdict(Difference(0.2, 0.1, 0.3, 0.06), higher_is_better=True) == "no detectable difference"
    assert verdict(Difference(0.2, 0.1, 0.3, 0.06), higher_is_better=True, confidence=0.9) == "better"
