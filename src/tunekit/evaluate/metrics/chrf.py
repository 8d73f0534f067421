"""Corpus chrF of sacreBLEU (chrF++ with word_order 2), 0 to 100."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tunekit.evaluate.contract import SumStatistic
from tunekit.evaluate.metrics._shared import sacre

HIGHER_IS_BETTER = True
PACKAGE = "sacrebleu"


class Config(BaseModel):
    """Options of the metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    char_order: int = Field(default=6, ge=1, description="the longest n-gram of characters")
    word_order: int = Field(default=0, ge=0, description="the longest n-gram of words; 2 is chrF++")
    beta: int = Field(default=2, ge=1, description="how many times recall counts as much as precision")
    lowercase: bool = Field(default=False, description="overlook upper and lower case")
    whitespace: bool = Field(default=False, description="white space counts as characters do")


def _measure(config: Config) -> Any:
    return sacre.library("chrf").CHRF(**config.model_dump())


def totals(predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[tuple[float, ...]]:
    """For each order the answer's n-grams, those of the reference that fits best, and the matches."""
    return sacre.totals(_measure(config), predictions, references)


def statistic_of(config: Config) -> SumStatistic:
    """chrF of summed counts.

    M. Popovic, chrF: character n-gram F-score for automatic MT evaluation, WMT 2015.
    """
    return sacre.statistic(_measure(config), counts=True)


def note(references: Sequence[Sequence[str]], config: Config) -> str:
    """sacreBLEU's signature."""
    return sacre.signature(_measure(config), references)
