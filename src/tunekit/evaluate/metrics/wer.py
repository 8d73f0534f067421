"""Word error rate: edits by the words of the reference."""

from __future__ import annotations

from collections.abc import Sequence

from tunekit.evaluate.metrics._shared import errors
from tunekit.evaluate.text import TextRules

HIGHER_IS_BETTER = False
PACKAGE = "jiwer"

statistic = errors.rate


class Config(TextRules):
    """Options of the metric."""


def totals(predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[tuple[float, ...]]:
    """(N, 2) edits to the nearest reference, and its length in words.

    Raises:
        UserError: jiwer is not installed.
    """
    return errors.edits("wer", predictions, references, config, "words")
