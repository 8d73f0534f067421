"""Corpus BLEU of sacreBLEU, 0 to 100."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tunekit.evaluate.contract import SumStatistic
from tunekit.evaluate.metrics._shared import sacre

HIGHER_IS_BETTER = True
PACKAGE = "sacrebleu"


class Config(BaseModel):
    """Options of the metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokenize: Literal["13a", "intl", "zh", "char", "none"] = Field(
        default="13a", description="how text is split: 13a is WMT's, zh is for Chinese, char suits any script"
    )
    lowercase: bool = Field(default=False, description="overlook upper and lower case")
    max_order: int = Field(default=4, ge=1, le=9, description="the longest n-gram that counts")
    smooth: Literal["exp", "floor", "add-k", "none"] = Field(
        default="exp", description="what becomes of an n-gram order without a match"
    )
    smooth_value: float | None = Field(default=None, ge=0, description="of floor (0.1) and add-k (1)")


def _measure(config: Config, *, effective_order: bool = False) -> Any:
    return sacre.library("bleu").BLEU(
        tokenize=config.tokenize,
        lowercase=config.lowercase,
        max_ngram_order=config.max_order,
        smooth_method=config.smooth,
        smooth_value=config.smooth_value,
        effective_order=effective_order,
        force=True,  # says nothing about text that looks tokenized
    )


def totals(predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[tuple[float, ...]]:
    """Length, length of the closest reference, then the matches and the n-grams of each order."""
    return sacre.totals(_measure(config), predictions, references)


def statistic_of(config: Config) -> SumStatistic:
    """BLEU of summed counts.

    M. Post, A call for clarity in reporting BLEU scores, WMT 2018.
    """
    return sacre.statistic(_measure(config), counts=True)


def shown(rows: Sequence[tuple[float, ...]], config: Config) -> list[float]:
    """Sentence BLEU of each row's totals, over the n-gram orders that the answer is long enough for."""
    measure = _measure(config, effective_order=True)
    return [float(measure._compute_score_from_stats(list(row)).score) for row in rows]


def note(references: Sequence[Sequence[str]], config: Config) -> str:
    """sacreBLEU's signature."""
    return sacre.signature(_measure(config), references)
