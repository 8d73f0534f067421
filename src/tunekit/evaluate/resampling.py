"""Draws rows again, and exchanges them: the bootstrap's bounds and the sign-flip test, for any function of column sums.

Shapes: ``N`` rows, ``C`` columns, ``R`` resamples. A resample is how often each row was drawn, so that its column sums
are one product of matrices, which is quicker than gathering rows and holds for hundreds of columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Sums = Callable[[Array], Array]

SIGN_FLIPS = 9999
EXACT_ROWS = 12  # up to here all 2**N sign flips are counted
UNDEFINED = 0.01  # more resamples than this share without a number, and nothing is said
_CELLS = 1 << 20  # numbers held at one time while resampling
_STEP = 1e-3  # of a column sum's standard error: what a derivative is measured over
_NOTHING = 1e-6  # of the whole data's standard error: a resample's below this is rounding


def quietly(statistic: Sums, sums: Array) -> Array:
    """``statistic`` of (R, C) sums, (R,): numpy is not heard where it divides by 0."""
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.asarray(statistic(sums), dtype=np.float64)


def bounds(
    table: Array, statistic: Sums, confidence: float, resamples: int, *, seed: int, studentised: bool
) -> tuple[float, float]:
    """Low and high bound of a statistic of the sums of ``table`` (N, C), from rows drawn again with replacement.

    Args:
        table: N > 1 rows of finite numbers.
        statistic: from column sums (R, C) to (R,), finite for the whole table.
        confidence: of the interval.
        resamples: R.
        seed: of the draws.
        studentised: bootstrap-t in the place of expanded percentiles; for smooth statistics of few columns, because it
            takes C derivatives and C * C products.

    Returns:
        nan when more than 1 % of the resamples have no number; fewer are left out.
    """
    import numpy as np

    n, columns = table.shape
    value = quietly(statistic, table.sum(axis=0, keepdims=True))[0]
    centred = table - table.mean(axis=0)
    whole = table
    if studentised:
        products = (centred[:, :, None] * centred[:, None, :]).reshape(n, columns * columns)
        whole = np.concatenate([table, centred, products], axis=1)
        step = _STEP * math.sqrt(n) * table.std(axis=0)
        error = _standard_error(statistic, np.ones((1, n)) @ whole, step, n)[0]
        studentised = bool(np.isfinite(error) and error > 0)
    rng = np.random.default_rng(seed)
    drawn, errors = [], []
    for counts in _resampled(rng, n, resamples, max(n, whole.shape[1])):
        sums = counts @ whole
        drawn.append(quietly(statistic, sums[:, :columns]))
        if studentised:
            errors.append(_standard_error(statistic, sums, step, n))
    found = np.concatenate(drawn)
    defined = ~np.isnan(found)
    if (~defined).mean() > UNDEFINED:
        return math.nan, math.nan
    if studentised:
        return _by_student(found[defined], np.concatenate(errors)[defined], value, error, confidence)
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * student_quantile((1 + confidence) / 2, n - 1))
    low, high = np.quantile(found[defined], [tail, 1 - tail])
    return float(low), float(high)


def _by_student(found: Array, errors: Array, value: float, error: float, confidence: float) -> tuple[float, float]:
    """Bootstrap-t, held within what the resamples gave.

    A resample whose rows agree has no standard error, and stands infinitely far out; without the hold a few such, as
    sparse scores give, would put a bound far beyond every possible score.
    """
    import numpy as np

    change = found - value
    near = np.abs(change) <= _NOTHING * error
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(near, 0.0, change / np.where(errors > _NOTHING * error, errors, 0.0))
    known = ~np.isnan(distance)
    if (~known).mean() > UNDEFINED:
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    far_low = np.quantile(distance[known], tail, method="lower")
    far_high = np.quantile(distance[known], 1 - tail, method="higher")
    return float(max(value - far_high * error, found.min())), float(min(value - far_low * error, found.max()))


def _standard_error(statistic: Sums, sums: Array, step: Array, n: int) -> Array:
    """Of the statistic in each resample, by the delta method; derivatives are central differences: (R,).

    Args:
        statistic: from (R, C) to (R,).
        sums: (R, C + C + C * C): of the columns, of the centred columns, and of their products.
        step: (C,), 0 for a constant column.
        n: rows.
    """
    import numpy as np

    columns = len(step)
    own, centred, products = sums[:, :columns], sums[:, columns : 2 * columns] / n, sums[:, 2 * columns :] / n
    slope = np.zeros_like(own)
    for column in np.flatnonzero(step):
        move = np.zeros(columns)
        move[column] = step[column]
        difference = quietly(statistic, own + move) - quietly(statistic, own - move)
        slope[:, column] = difference * (n / (2 * step[column]))
    covariance = products.reshape(-1, columns, columns) - centred[:, :, None] * centred[:, None, :]
    variance = np.einsum("rc,rcd,rd->r", slope, covariance, slope) / n
    return np.asarray(np.sqrt(np.maximum(variance, 0)))


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


def sign_flip(before: Array, after: Array, difference: Sums, *, seed: int) -> float:
    """Two-sided p-value from exchanging base and tuned within rows: all exchanges for few rows, else a sample of them.

    Exchanges for which the difference has no number are left out; the test stays exact, for which those are does not
    depend on which model is which. nan when they are more than 1 %.

    R. A. Fisher, The design of experiments (1935), section 21; of corpus metrics, where it is called approximate
    randomization: S. Riezler and J. T. Maxwell, On some pitfalls in automatic evaluation and significance testing for
    MT, ACL workshop (2005); the sample counts the data as one of its draws, after B. Phipson and G. K. Smyth,
    Permutation p-values should never be zero, Stat. Appl. Genet. Mol. Biol. 9 (2010) 39.

    Args:
        before: (N, C).
        after: (N, C).
        difference: from sums (R, 2C), base's columns and then tuned's, to (R,).
        seed: of the sample.
    """
    import numpy as np

    n = len(before)
    change = after - before  # (N, C)
    totals = np.concatenate([before, after], axis=1).sum(axis=0, keepdims=True)
    observed = abs(float(quietly(difference, totals)[0]))
    if not math.isfinite(observed):
        return math.nan
    least = observed * (1 - 1e-9)  # an exchange that gives the same difference may differ by rounding

    def of(flips: Array) -> Array:
        moved = flips @ change  # (R, C): what goes from tuned to base
        return np.abs(quietly(difference, totals + np.concatenate([moved, -moved], axis=1)))

    if n <= EXACT_ROWS:
        every = ((np.arange(2**n)[:, None] >> np.arange(n)) & 1).astype(np.float64)
        found = of(every)
    else:
        rng = np.random.default_rng(seed)
        sizes = _parts(SIGN_FLIPS, max(n, 2 * change.shape[1]))
        found = np.concatenate([of(_coins(rng, size, n)) for size in sizes])
    defined = found[~np.isnan(found)]
    if len(defined) < (1 - UNDEFINED) * len(found):
        return math.nan
    reached, own = int((defined >= least).sum()), int(n > EXACT_ROWS)  # a sample need not hold the data as they are
    return (reached + own) / (len(defined) + own)


def _coins(rng: np.random.Generator, size: int, n: int) -> Array:
    """0 or 1 at even odds, (size, N); eight from a byte, which is what the test's time goes into."""
    import numpy as np

    drawn = rng.integers(0, 256, (size, -(-n // 8)), dtype=np.uint8)
    return np.unpackbits(drawn, axis=1, count=n).astype(np.float64)


def _resampled(rng: np.random.Generator, n: int, total: int, cells: int) -> Iterator[Array]:
    """How often each row was drawn, (R, N), in parts that fit memory."""
    import numpy as np

    for size in _parts(total, cells):
        drawn = rng.integers(n, size=(size, n))
        drawn += np.arange(size)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def _parts(total: int, cells: int) -> Iterator[int]:
    """``total`` resamples of ``cells`` numbers each, in parts that fit memory."""
    part = max(1, _CELLS // cells)
    for start in range(0, total, part):
        yield min(part, total - start)
