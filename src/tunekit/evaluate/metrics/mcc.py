"""Matthews correlation coefficient of the labels, -1 to 1; any number of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunekit.evaluate.metrics._shared.classes import classes, labelled
from tunekit.evaluate.text import TextRules

HIGHER_IS_BETTER = True


class Config(TextRules):
    """Options of the metric."""


def totals(predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[tuple[float, ...]]:
    """(N, 2K + 3): whether the row is of the class, for each of K classes and any other label, whether it is
    answered by it, and whether it is answered rightly.
    """
    known = {label: index for index, label in enumerate(classes(references, config))}
    width, other = len(known) + 1, len(known)
    found = []
    for right, given in labelled(predictions, references, config):
        row = [0.0] * (2 * width + 1)
        row[known[right]] = row[width + known.get(given, other)] = 1.0
        row[-1] = float(right == given)
        found.append(tuple(row))
    return found


def shown(rows: Sequence[tuple[float, ...]], config: Config) -> list[float]:
    """1 for rows answered rightly, else 0."""
    return [row[-1] for row in rows]


def statistic(sums: Any) -> Any:
    """R_K of summed counts, 0 where one label is all that is said or right: (R, C) -> (R,).

    J. Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient, Comput. Biol. Chem. 28
    (2004) 367-374.
    """
    import numpy as np

    wanted, given = np.hsplit(sums[:, :-1], 2)
    rows, hits = wanted.sum(axis=1), sums[:, -1]
    together = hits * rows - (wanted * given).sum(axis=1)
    spread = (rows**2 - (wanted**2).sum(axis=1)) * (rows**2 - (given**2).sum(axis=1))
    return np.divide(together, np.sqrt(spread), out=np.zeros(len(sums)), where=spread > 0)
