"""ROUGE-L: the longest common subsequence of answer and reference (F-measure, 0 to 1)."""

from __future__ import annotations

from collections.abc import Sequence

from tunekit.evaluate.metrics._shared.rouge import RougeConfig, fmeasures

HIGHER_IS_BETTER = True
PACKAGE = "rouge_score"


class Config(RougeConfig):
    """Options of the metric."""


def score(predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[float]:
    """The F-measure of each answer against the reference that fits best.

    Raises:
        UserError: rouge-score is not installed.
    """
    return fmeasures("rougeL", predictions, references, config)
