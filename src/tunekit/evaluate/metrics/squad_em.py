"""SQuAD's exact match: case, punctuation and articles are overlooked."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from tunekit.evaluate.metrics._shared.answers import squad_words
from tunekit.evaluate.text import best

HIGHER_IS_BETTER = True


class Config(BaseModel):
    """The metric has no options."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def score(predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[float]:
    """1.0 for each answer that equals one of its references by SQuAD's rules, else 0.0."""
    return best(lambda given, wanted: float(squad_words(given) == squad_words(wanted)), predictions, references)
