"""sacreBLEU's measures from a row's sufficient statistics, so that their corpus numbers can be resampled by row.

The statistics, and the number made of their sums, are sacreBLEU's own: those of its paired bootstrap (its
``Metric._extract_corpus_statistics`` and ``Metric._compute_score_from_stats``, which every measure of it defines).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from tunekit.evaluate.contract import SumStatistic
from tunekit.evaluate.extras import need


def library(metric: str) -> ModuleType:
    """``sacrebleu.metrics``, for the metric of that name.

    Raises:
        UserError: sacreBLEU is not installed.
    """
    return need("sacrebleu.metrics", "eval", f"metric '{metric}'")


def totals(measure: Any, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[tuple[float, ...]]:
    """(N, C) sacreBLEU's statistics of each row; rows may have different numbers of references."""
    rows = [right for _, right in zip(predictions, references, strict=True)]
    if not rows:
        return []
    width = max(map(len, rows))
    streams = [[right[i] if i < len(right) else None for right in rows] for i in range(width)]
    return [tuple(row) for row in measure._extract_corpus_statistics(list(predictions), streams)]


def statistic(measure: Any, *, counts: bool) -> SumStatistic:
    """sacreBLEU's number of sums; ``counts``: these are whole numbers, and sums that rounding touched are set right."""

    def number(sums: Any) -> Any:
        import numpy as np

        rows = np.rint(sums).astype(np.int64) if counts else sums
        return np.array([measure._compute_score_from_stats(row).score for row in rows.tolist()])

    return number


def signature(measure: Any, references: Sequence[Sequence[str]]) -> str:
    """sacreBLEU's signature, which says how the number was made."""
    numbers = {len(right) for right in references}
    measure.num_refs = numbers.pop() if len(numbers) == 1 else -1  # -1: it varies
    return str(measure.get_signature().format())
