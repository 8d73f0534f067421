"""N-grams of an answer, and how many of them differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunekit.evaluate.text import words


def variety(predictions: Sequence[str], n: int) -> list[float | None]:
    """Different n-grams by all n-grams of each answer; None for answers of fewer than ``n`` words."""
    found: list[float | None] = []
    for prediction in predictions:
        row = words(prediction)
        grams = [tuple(row[start : start + n]) for start in range(len(row) - n + 1)]
        found.append(len(set(grams)) / len(grams) if grams else None)
    return found


def counted(values: Sequence[float | None]) -> list[tuple[float, ...]]:
    """(N, 2) value and 1; rows without a value do not count."""
    return [(0.0, 0.0) if value is None else (value, 1.0) for value in values]


def mean(sums: Any) -> Any:
    """Mean of the rows that have a value, nan where none has: (R, 2) -> (R,)."""
    import numpy as np

    return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)
