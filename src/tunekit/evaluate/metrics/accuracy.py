"""The share of answers that are the right label."""

from __future__ import annotations

from collections.abc import Sequence

from tunekit.evaluate.metrics._shared.classes import labelled
from tunekit.evaluate.text import TextRules

HIGHER_IS_BETTER = True


class Config(TextRules):
    """Options of the metric."""


def score(predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[float]:
    """1.0 for each right answer, else 0.0."""
    return [float(right == given) for right, given in labelled(predictions, references, config)]
