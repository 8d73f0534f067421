"""1 where the answer is as long as wanted, less the farther its length is from that, and never below 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from tunekit.rl.contract import Answer
from tunekit.rl.rewards._shared.block import RewardBlock, unfit


class Config(RewardBlock):
    """The answer's length: a target, or a range."""

    kind: Literal["length"]
    target: int | None = Field(None, ge=1, description="this length")
    min: int | None = Field(None, ge=0, description="or not shorter than this")
    max: int | None = Field(None, ge=1, description="and not longer than this")
    unit: Literal["tokens", "characters"] = Field("tokens", description="tokens count the end token as well")
    margin: int | None = Field(
        None, ge=1, description="so far outside the reward is 0; default: as far as the bound itself is from 0"
    )

    @model_validator(mode="after")
    def _one(self) -> Config:
        ranged = self.min is not None or self.max is not None
        if ranged == (self.target is not None):
            fix = "for example `{kind: length, max: 200}`; leave out the `target`, or `min` and `max`"
            raise unfit("either with a `target`, or with `min`, `max` or both", fix)
        if self.min is not None and self.max is not None and self.min > self.max:
            raise unfit(f"with a `min` ({self.min}) that is not above `max` ({self.max})", "exchange the two")
        return self


def score(answers: Sequence[Answer], config: Config) -> list[float]:
    """From 0.0 to 1.0 an answer."""
    low = config.min if config.target is None else config.target
    high = config.max if config.target is None else config.target
    lengths = [answer.tokens if config.unit == "tokens" else len(answer.text) for answer in answers]
    return [_inside(length, low, high, config.margin) for length in lengths]


def _inside(length: int, low: int | None, high: int | None, margin: int | None) -> float:
    if low is not None and length < low:
        return max(0.0, 1 - (low - length) / (margin or low))
    if high is not None and length > high:
        return max(0.0, 1 - (length - high) / (margin or high))
    return 1.0
