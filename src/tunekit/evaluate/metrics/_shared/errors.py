"""Error rates of speech recognition: edits by the length of the reference, counted by jiwer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tunekit.evaluate.extras import need
from tunekit.evaluate.text import TextRules


def edits(
    metric: str, predictions: Sequence[str], references: Sequence[Sequence[str]], rules: TextRules, unit: str
) -> list[tuple[float, ...]]:
    """(N, 2) edits to the reference of the lowest error rate, and its length, in units.

    Args:
        metric: its name, for errors.
        predictions: N answers.
        references: N times one or more right answers.
        rules: what is overlooked.
        unit: ``words`` or ``characters``.

    Raises:
        UserError: jiwer is not installed.
    """
    library = need("jiwer", "eval", f"metric '{metric}'")
    process: Callable[..., Any] = library.process_words if unit == "words" else library.process_characters

    def count(given: str, wanted: str) -> tuple[float, float]:
        if not wanted.split():  # jiwer refuses it: all that is said was put in
            return float(len(given.split() if unit == "words" else given.strip())), 0.0
        found = process(wanted, given)
        missed = found.substitutions + found.deletions
        return float(missed + found.insertions), float(missed + found.hits)

    def lowest(given: str, right: Sequence[str]) -> tuple[float, float]:
        counts = [count(rules.apply(given), rules.apply(wanted)) for wanted in right]
        return min(counts, key=lambda pair: (pair[0] / pair[1] if pair[1] else pair[0], pair[0]))

    return [lowest(given, right) for given, right in zip(predictions, references, strict=True)]


def rate(sums: Any) -> Any:
    """Edits by length, nan where there is none: (R, 2) -> (R,)."""
    import numpy as np

    return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)
