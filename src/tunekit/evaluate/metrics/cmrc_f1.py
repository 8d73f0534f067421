"""CMRC 2018's F1, for Chinese: the longest run that answer and reference share, 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from tunekit.evaluate.metrics._shared.answers import cmrc_pieces, run_overlap
from tunekit.evaluate.text import best

HIGHER_IS_BETTER = True


class Config(BaseModel):
    """The metric has no options."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def score(predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[float]:
    """F1 of the longest common run of each answer against the reference that fits best."""
    return best(lambda given, wanted: run_overlap(cmrc_pieces(given), cmrc_pieces(wanted)), predictions, references)
