"""Translation edit rate of sacreBLEU, in percent of the reference's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tunekit.evaluate.contract import SumStatistic
from tunekit.evaluate.metrics._shared import sacre

HIGHER_IS_BETTER = False
PACKAGE = "sacrebleu"


class Config(BaseModel):
    """Options of the metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    normalized: bool = Field(default=False, description="split punctuation from words")
    no_punct: bool = Field(default=False, description="overlook punctuation")
    asian_support: bool = Field(default=False, description="with normalized: split Chinese and its kin by characters")
    case_sensitive: bool = Field(default=False, description="upper and lower case differ")


def _measure(config: Config) -> Any:
    return sacre.library("ter").TER(**config.model_dump())


def totals(predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[tuple[float, ...]]:
    """Edits to the nearest reference, and the references' mean length in words."""
    return sacre.totals(_measure(config), predictions, references)


def statistic_of(config: Config) -> SumStatistic:
    """Edits by words.

    M. Snover et al., A study of translation edit rate with targeted human annotation, AMTA 2006.
    """
    return sacre.statistic(_measure(config), counts=False)


def note(references: Sequence[Sequence[str]], config: Config) -> str:
    """sacreBLEU's signature."""
    return sacre.signature(_measure(config), references)
