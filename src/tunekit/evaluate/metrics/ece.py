"""Expected calibration error: how far the labels' probabilities are from how often they are right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from tunekit.core.errors import DataError, Problem, raise_all
from tunekit.evaluate.metrics._shared.classes import labelled
from tunekit.evaluate.text import TextRules

HIGHER_IS_BETTER = False
NEEDS_PROBABILITY = True


class Config(TextRules):
    """Options of the metric."""

    bins: int = Field(default=15, ge=1, description="equal ranges of probability, within which rows are averaged")


def totals(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    config: Config,
    *,
    probabilities: Sequence[float],
) -> list[tuple[float, ...]]:
    """(N, 3B): whether the row is in the bin, its probability, and whether it is right, for each of B bins.

    A bin holds its upper end, the first one 0 as well.

    Raises:
        DataError: a probability is not within 0 and 1.
    """
    import numpy as np

    wrong = [row for row, value in enumerate(probabilities, start=1) if not 0 <= value <= 1]
    raise_all(
        DataError, [Problem("the label's probability is not within 0 and 1", f"evaluation row {row}") for row in wrong]
    )
    inner = np.linspace(0, 1, config.bins + 1)[1:-1]
    found = []
    pairs = zip(labelled(predictions, references, config), probabilities, strict=True)
    for ((right, given), probability), place in zip(pairs, np.searchsorted(inner, probabilities), strict=True):
        row = [0.0] * (3 * config.bins)
        row[3 * place : 3 * place + 3] = [1.0, float(probability), float(right == given)]
        found.append(tuple(row))
    return found


def shown(rows: Sequence[tuple[float, ...]], config: Config) -> list[float]:
    """1 for rows answered rightly, else 0."""
    return [sum(row[2::3]) for row in rows]


def statistic(sums: Any) -> Any:
    """Mean distance of probability and accuracy in the bins, weighted by their rows: (R, 3B) -> (R,).

    C. Guo et al., On calibration of modern neural networks, ICML 2017.
    """
    import numpy as np

    rows = sums[:, 0::3].sum(axis=1)
    apart = np.abs(sums[:, 1::3] - sums[:, 2::3]).sum(axis=1)
    return np.divide(apart, rows, out=np.full(len(sums), np.nan), where=rows > 0)
