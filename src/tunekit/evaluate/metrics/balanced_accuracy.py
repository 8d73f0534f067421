"""The share of right answers in each class, averaged over the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunekit.evaluate.metrics._shared.classes import classes, labelled
from tunekit.evaluate.text import TextRules

HIGHER_IS_BETTER = True


class Config(TextRules):
    """Options of the metric."""


def totals(predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[tuple[float, ...]]:
    """(N, 2K): whether the answer is right, for each of K classes, then whether the row is of the class."""
    known = {label: index for index, label in enumerate(classes(references, config))}
    found = []
    for right, given in labelled(predictions, references, config):
        row = [0.0] * (2 * len(known))
        row[known[right]] = float(right == given)
        row[len(known) + known[right]] = 1.0
        found.append(tuple(row))
    return found


def statistic(sums: Any) -> Any:
    """Mean recall of the classes that have rows, as scikit-learn's balanced_accuracy_score: (R, 2K) -> (R,)."""
    import numpy as np

    hits, rows = np.hsplit(sums, 2)
    recall = np.divide(hits, rows, out=np.zeros_like(hits), where=rows > 0)
    present = (rows > 0).sum(axis=1)
    return np.divide(recall.sum(axis=1), present, out=np.full(len(sums), np.nan), where=present > 0)
