"""The answer equals the reference."""

from __future__ import annotations

from collections.abc import Sequence

from tunekit.evaluate.text import TextRules

HIGHER_IS_BETTER = True


class Config(TextRules):
    """Options of the metric."""


def score(predictions: Sequence[str], references: Sequence[str], config: Config) -> list[float]:
    """1.0 for each prediction that equals its reference, else 0.0."""
    pairs = zip(predictions, references, strict=True)
    return [float(config.apply(prediction) == config.apply(reference)) for prediction, reference in pairs]
