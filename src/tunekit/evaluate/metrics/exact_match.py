"""The answer equals the reference."""

from __future__ import annotations

from collections.abc import Sequence

from tunekit.evaluate.text import TextRules, best

HIGHER_IS_BETTER = True


class Config(TextRules):
    """Options of the metric."""


def score(predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[float]:
    """1.0 for each prediction that equals one of its references, else 0.0."""

    def same(prediction: str, reference: str) -> float:
        return float(config.apply(prediction) == config.apply(reference))

    return best(same, predictions, references)
