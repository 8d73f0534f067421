"""Intervals and paired tests for evaluation results: how sure a number is, and whether tuning changed it.

Shapes: ``N`` rows, ``C`` columns of totals a row, ``R`` resamples. A statistic is a function of the columns' means, so
that a mean and a ratio of sums are resampled in one way, by row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
Verdict = Literal["better", "worse", "no detectable difference"]

RESAMPLES = 2000
SIGN_FLIPS = 9999
EXACT_ROWS = 12  # up to here all 2**N sign flips are counted
_CELLS = 1 << 22  # numbers held at one time while resampling


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its confidence interval; a bound that cannot be known is nan."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Tuned minus base: value, confidence interval, and the p-value of no difference; nan where it cannot be known."""

    value: float
    low: float
    high: float
    p_value: float


def mean(means: Array) -> Array:
    """The first column's mean: (R, C) -> (R,)."""
    return means[:, 0]


def weighted_mean(means: Array) -> Array:
    """Sum of the first column by sum of the second: (R, 2) -> (R,)."""
    return np.asarray(means[:, 0] / means[:, 1])


def perplexity(means: Array) -> Array:
    """exp(sum of negative log-likelihoods / sum of tokens), infinite where that overflows: (R, 2) -> (R,)."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(means[:, 0] / means[:, 1]))


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of a proportion; unlike the bootstrap it keeps its width when all rows agree.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927) 209-212.
    """
    assert 0 <= successes <= n, (successes, n)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # at the ends the bound is the end itself, which rounding may miss
    return Interval(p, 0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def bootstrap_interval(
    values: Sequence[float] | Array,
    statistic: Statistic = mean,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    *,
    seed: int,
) -> Interval:
    """Expanded percentile bootstrap over rows.

    The plain percentile interval is too narrow for few rows, by sqrt((n - 1) / n) and by the normal's quantile in the
    place of Student's; the expanded one takes wider percentiles to make up for both.

    B. Efron, Bootstrap methods: another look at the jackknife, Ann. Statist. 7 (1979) 1-26;
    T. C. Hesterberg, What teachers should know about the bootstrap, Amer. Statist. 69 (2015) 371-386.

    Args:
        values: (N,) or (N, C).
        statistic: from column means (R, C) to (R,).
        confidence: of the interval.
        resamples: R.
        seed: of the resampling.

    Returns:
        nan throughout when a value is not finite or there is none; nan bounds for a single row.
    """
    table = _table(values)
    n = len(table)
    if n == 0 or not np.isfinite(table).all():
        return Interval(math.nan, math.nan, math.nan)
    value = float(statistic(table.mean(axis=0, keepdims=True))[0])
    if n == 1 or not math.isfinite(value):
        return Interval(value, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    drawn = [statistic(table[rng.integers(n, size=(size, n))].mean(axis=1)) for size in _parts(resamples, table.size)]
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * student_quantile((1 + confidence) / 2, n - 1))
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t, exact for 1 and 2 degrees of freedom, within 0.2 % of it from 3 on at usual levels.

    Cornish-Fisher expansion: Abramowitz and Stegun, Handbook of mathematical functions (1964), 26.7.5.
    """
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        return (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    z, k = NormalDist().inv_cdf(probability), freedom
    return (
        z
        + (z**3 + z) / (4 * k)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * k**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * k**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * k**4)
    )


def paired_difference(
    base: Sequence[float] | Array,
    tuned: Sequence[float] | Array,
    statistic: Statistic = mean,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    *,
    seed: int,
) -> Difference:
    """Statistic of ``tuned`` minus statistic of ``base``, both over the same rows in the same order.

    Rows of 0 and 1: McNemar's exact test and Newcombe's interval. All else: the sign-flip test, and the bootstrap of
    the pairs.

    Args:
        base: (N,) or (N, C).
        tuned: like ``base``.
        statistic: from column means (R, C) to (R,); 0/1 rows are recognised for ``mean`` only.
        confidence: of the interval.
        resamples: R, for the bootstrap.
        seed: of the resampling.

    Returns:
        nan throughout when a value is not finite or there is no row.
    """
    before, after = _table(base), _table(tuned)
    assert before.shape == after.shape, (before.shape, after.shape)
    both = np.concatenate([before, after], axis=1)  # (N, 2C)
    columns = before.shape[1]
    if len(both) == 0 or not np.isfinite(both).all():
        return Difference(math.nan, math.nan, math.nan, math.nan)
    if statistic is mean and np.isin(both, (0.0, 1.0)).all():
        return _paired_proportions(before[:, 0] == 1, after[:, 0] == 1, confidence)

    def difference(means: Array) -> Array:
        with np.errstate(invalid="ignore"):  # infinity less infinity is nan, as it should be
            return np.asarray(statistic(means[:, columns:]) - statistic(means[:, :columns]))

    found = bootstrap_interval(both, difference, confidence, resamples, seed=seed)
    return Difference(found.value, found.low, found.high, _sign_flip(before, after, difference, seed))


def verdict(difference: Difference, *, higher_is_better: bool, confidence: float = 0.95) -> Verdict | None:
    """What the difference says about the tuned model; None when a number is missing to say it.

    A difference is called detectable only if the test rejects and the interval excludes 0: the two are computed in
    different ways, and may disagree at the margin.
    """
    numbers = (difference.value, difference.low, difference.high, difference.p_value)
    if not all(map(math.isfinite, numbers)):
        return None
    if difference.p_value > 1 - confidence or difference.low <= 0 <= difference.high:
        return "no detectable difference"
    return "better" if (difference.value > 0) == higher_is_better else "worse"


def mcnemar_p_value(gained: int, lost: int) -> float:
    """Exact two-sided p-value of ``gained`` rows going from 0 to 1 and ``lost`` from 1 to 0: a fair coin's.

    Q. McNemar, Note on the sampling error of the difference between correlated proportions or percentages,
    Psychometrika 12 (1947) 153-157.
    """
    changed = gained + lost
    tail = ways = 1  # ways to choose 0 of the changed rows, then 1, 2, ...
    for k in range(min(gained, lost)):
        ways = ways * (changed - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / (1 << changed))


def _paired_proportions(before: NDArray[np.bool_], after: NDArray[np.bool_], confidence: float) -> Difference:
    """Interval by method 10 of R. G. Newcombe, Improved confidence intervals for the difference between binomial
    proportions based on paired data, Statist. Med. 17 (1998) 2635-2650; p-value by McNemar.
    """
    n = len(before)
    kept, gained = int((before & after).sum()), int((after & ~before).sum())
    lost = int((before & ~after).sum())
    missed = n - kept - gained - lost
    new, old = (wilson_interval(kept + change, n, confidence) for change in (gained, lost))
    product: float = kept * missed - gained * lost
    if product > 0:
        product = max(product - n / 2, 0)  # continuity correction
    margins = (kept + gained) * (lost + missed) * (kept + lost) * (gained + missed)
    phi = product / math.sqrt(margins) if margins else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    value = (gained - lost) / n
    low = value - reach(new.value - new.low, old.high - old.value)
    high = value + reach(new.high - new.value, old.value - old.low)
    return Difference(value, low, high, mcnemar_p_value(gained, lost))


def _sign_flip(before: Array, after: Array, difference: Statistic, seed: int) -> float:
    """Two-sided p-value from exchanging base and tuned within rows: all exchanges for few rows, else a sample of them.

    R. A. Fisher, The design of experiments (1935), section 21; the sample counts the data as one of its draws, after
    B. Phipson and G. K. Smyth, Permutation p-values should never be zero, Stat. Appl. Genet. Mol. Biol. 9 (2010) 39.
    """
    n = len(before)
    change = after - before  # (N, C)

    def reached(flips: Array) -> int:
        moved = flips @ change / n  # (R, C): what goes from tuned to base
        means = np.concatenate([before.mean(axis=0) + moved, after.mean(axis=0) - moved], axis=1)
        return int((np.abs(difference(means)) >= least).sum())

    observed = abs(float(difference(np.concatenate([before, after], axis=1).mean(axis=0, keepdims=True))[0]))
    if not math.isfinite(observed):
        return math.nan
    least = observed * (1 - 1e-9)  # an exchange that gives the same difference may differ by rounding
    if n <= EXACT_ROWS:
        every = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return reached(every.astype(np.float64)) / len(every)
    rng = np.random.default_rng(seed)
    count = sum(reached(rng.integers(0, 2, (size, n)).astype(np.float64)) for size in _parts(SIGN_FLIPS, n))
    return (count + 1) / (SIGN_FLIPS + 1)


def _table(values: Sequence[float] | Array) -> Array:
    """(N,) or (N, C) -> (N, C)."""
    table = np.asarray(values, dtype=np.float64)
    return table if table.ndim == 2 else table.reshape(-1, 1)


def _parts(total: int, cells: int) -> Iterator[int]:
    """``total`` resamples of ``cells`` numbers each, in parts that fit memory."""
    part = max(1, _CELLS // cells)
    for start in range(0, total, part):
        yield min(part, total - start)
