"""The share of an answer's n-grams that differ; answers too short to have one do not count."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from tunekit.evaluate.metrics._shared import ngrams

HIGHER_IS_BETTER = True
NEEDS_REFERENCE = False

statistic = ngrams.mean


class Config(BaseModel):
    """Options of the metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(default=2, ge=1, description="words in an n-gram; in scripts without spaces, characters")


def totals(predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[tuple[float, ...]]:
    """(N, 2) different n-grams by n-grams, and 1.

    J. Li et al., A diversity-promoting objective function for neural conversation models, NAACL 2016.
    """
    return ngrams.counted(ngrams.variety(predictions, config.n))
