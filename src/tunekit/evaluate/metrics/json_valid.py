"""The answer is JSON, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from tunekit.evaluate.metrics._shared import jsons

HIGHER_IS_BETTER = True
NEEDS_REFERENCE = False


class Config(BaseModel):
    """The metric has no options."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def score(predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[float]:
    """1.0 for each answer that is JSON, else 0.0; references are not read."""
    return [_valid(prediction) for prediction in predictions]


def _valid(text: str) -> float:
    try:
        jsons.read(text, str)  # no number is too great to be valid
    except ValueError:
        return 0.0
    return 1.0
