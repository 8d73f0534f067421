"""The share of an answer's n-grams that it has said already; answers too short to have one do not count."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from tunekit.evaluate.metrics._shared import ngrams

HIGHER_IS_BETTER = False
NEEDS_REFERENCE = False

statistic = ngrams.mean


class Config(BaseModel):
    """Options of the metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(default=4, ge=1, description="words in an n-gram; in scripts without spaces, characters")


def totals(predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[tuple[float, ...]]:
    """(N, 2) repeated n-grams by n-grams, and 1.

    S. Welleck et al., Neural text generation with unlikelihood training, ICLR 2020.
    """
    return ngrams.counted([None if share is None else 1 - share for share in ngrams.variety(predictions, config.n)])
