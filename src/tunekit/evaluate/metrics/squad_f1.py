"""SQuAD's F1: the words that answer and reference share, 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from tunekit.evaluate.metrics._shared.answers import overlap, squad_words
from tunekit.evaluate.text import best

HIGHER_IS_BETTER = True


class Config(BaseModel):
    """The metric has no options."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def score(predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[float]:
    """F1 of each answer's words against the reference that fits best."""
    return best(lambda given, wanted: overlap(squad_words(given), squad_words(wanted)), predictions, references)
