"""Golden numbers are worked by hand, taken from tables, or counted out; coverage is simulated with a fixed seed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tunekit.evaluate.resampling import student_quantile
from tunekit.evaluate.statistics import (
    Difference,
    adjusted,
    bootstrap_interval,
    mcnemar_p_value,
    mean,
    over_seeds,
    paired_difference,
    perplexity,
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


def correlation(sums):
    """Matthews correlation of (R, 4) counts: true positives, false positives, false negatives, true negatives."""
    tp, fp, fn, tn = sums.T
    return (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))


def answers(tp, fp, fn, tn):
    return np.repeat(np.eye(4), [tp, fp, fn, tn], axis=0)


def test_sums_by_hand():
    table = answers(6, 1, 2, 3)
    # (6 * 3 - 1 * 2) / sqrt(7 * 8 * 4 * 5) = 16 / sqrt(1120)
    found = bootstrap_interval(answers(60, 10, 20, 30), correlation, seed=0, sums=True)
    assert found.value == pytest.approx(16 / math.sqrt(1120))
    assert found.low < found.value < found.high < 1
    # a statistic that is not one of ratios sees sums, not means
    assert bootstrap_interval(table, lambda sums: sums.sum(axis=1), seed=0, sums=True).value == 12
    assert bootstrap_interval(table, lambda means: means.sum(axis=1), seed=0).value == 1


def test_a_ratio_is_the_same_by_means_and_by_sums():
    rng = np.random.default_rng(2)
    base, tuned = rng.integers(1, 9, (40, 2)).astype(float), rng.integers(1, 9, (40, 2)).astype(float)
    pairs_of = [bootstrap_interval(base, weighted_mean, seed=3, sums=sums) for sums in (False, True)]
    assert [pairs_of[0].low, pairs_of[0].high] == pytest.approx([pairs_of[1].low, pairs_of[1].high])
    both = [paired_difference(base, tuned, weighted_mean, seed=3, sums=sums) for sums in (False, True)]
    by_means, by_sums = ([found.low, found.high, found.p_value] for found in both)
    assert by_means == pytest.approx(by_sums)


def test_the_exchange_of_rows_of_sums_is_the_exact_enumeration():
    rng = np.random.default_rng(4)
    base, tuned = rng.integers(1, 9, (7, 2)).astype(float), rng.integers(1, 9, (7, 2)).astype(float)

    def ratio(rows):
        return sum(row[0] for row in rows) / sum(row[1] for row in rows)

    observed = abs(ratio(tuned) - ratio(base))
    reached = 0
    for flips in itertools.product((False, True), repeat=7):
        one, other = zip(*((b, t) if flip else (t, b) for flip, b, t in zip(flips, base, tuned)))
        reached += abs(ratio(one) - ratio(other)) >= observed - 1e-12
    assert paired_difference(base, tuned, weighted_mean, seed=0, sums=True).p_value == reached / 2**7


def test_hundreds_of_columns_in_parts(monkeypatch):
    rng = np.random.default_rng(6)
    base, tuned = rng.poisson(2, (50, 300)).astype(float), rng.poisson(2, (50, 300)).astype(float)

    def overlap(sums):
        return sums[:, :150].sum(axis=1) / sums[:, 150:].sum(axis=1)

    whole = paired_difference(base, tuned, overlap, seed=1, sums=True)
    monkeypatch.setattr("tunekit.evaluate.resampling._CELLS", 7 * 1200)
    in_parts = paired_difference(base, tuned, overlap, seed=1, sums=True)
    assert (in_parts.low, in_parts.high) == pytest.approx((whole.low, whole.high))
    assert in_parts.p_value == pytest.approx(whole.p_value, abs=0.02)


def test_a_few_resamples_without_a_number_are_left_out_and_many_are_not():
    # 5 negatives of 100: none of them in e**-5 = 0.7 % of the resamples; 2 of 100: in 13 %
    rare, rarer = answers(60, 2, 35, 3), answers(60, 1, 38, 1)
    found = bootstrap_interval(rare, correlation, seed=0, sums=True)
    assert math.isfinite(found.low) and math.isfinite(found.high)
    found = bootstrap_interval(rarer, correlation, seed=0, sums=True)
    assert math.isfinite(found.value) and math.isnan(found.low) and math.isnan(found.high)
    assert verdict(paired_difference(rarer, rare, correlation, seed=0, sums=True), higher_is_better=True) is None


def test_an_undefined_corpus_number_is_nan():
    table = answers(5, 0, 0, 0)
    assert math.isnan(bootstrap_interval(table, correlation, seed=0, sums=True).value)
    found = paired_difference(table, answers(2, 1, 1, 1), correlation, seed=0, sums=True)
    assert math.isnan(found.value) and math.isnan(found.p_value)


def test_exchanges_without_a_number_make_no_small_p_value():
    # base says yes to all, tuned is right: most exchanges have a number, too few to be left out quietly
    base, tuned = answers(4, 4, 0, 0), answers(4, 0, 0, 4)
    shifted = base.copy()
    shifted[0] = (0, 0, 1, 0)
    assert math.isnan(paired_difference(shifted, tuned, correlation, seed=0, sums=True).p_value)


def test_bounds_stay_within_what_resampling_gave():
    # one row in 40 is unlike the others: 36 % of the resamples miss it, and by themselves know of no spread
    values = [0.0] * 39 + [1.0]
    found = bootstrap_interval(values, seed=0)
    assert found.low == 0.0 and 0.05 < found.high < 0.3
    assert bootstrap_interval([0.3] * 20, seed=0) == bootstrap_interval([0.3] * 20, seed=1)
    assert bootstrap_interval([0.3] * 20, seed=0).high == pytest.approx(0.3)


def test_bootstrap_t_by_hand():
    # three rows 0, 1, 5: mean 2, standard error sqrt(14 / 9); 27 resamples counted out, infinitely far ones held
    rows = (0.0, 1.0, 5.0)
    drawn = [np.array(choice) for choice in itertools.product(rows, repeat=3)]
    error = math.sqrt(np.var(rows) / 3)
    assert error == pytest.approx(math.sqrt(14 / 9))
    with np.errstate(divide="ignore"):
        far = sorted((d.mean() - 2) / np.sqrt(d.var() / 3) for d in drawn)
    # at 80 %: 10 % of 27 is 2.7 from either end; the two lowest are 000 and 111, infinitely far
    low, high = 2 - far[-3] * error, 2 - far[2] * error
    found = bootstrap_interval(rows, confidence=0.8, resamples=200_000, seed=0)
    assert (found.low, found.high) == pytest.approx((max(low, 0.0), min(high, 5.0)))


def test_holm_by_hand():
    assert adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjusted([0.9, 0.6]) == [1.0, 1.0]
    assert adjusted([]) == []
    kept = adjusted([math.nan, 0.02, 0.5])
    assert math.isnan(kept[0]) and kept[1:] == pytest.approx([0.04, 0.5])


def test_over_seeds_by_hand():
    found = over_seeds([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert found.rows == pytest.approx((1, 2 / 3, 1, 1 / 3))
    assert found.means == (0.5, 0.75, 1.0)
    assert found.spread == 0.25
    assert math.isnan(over_seeds([[1.0, 0.0]]).spread)
