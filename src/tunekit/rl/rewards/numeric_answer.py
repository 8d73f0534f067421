"""1 where the last number of the answer is that of the row's right answer, else 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from tunekit.core.registry import METRICS
from tunekit.rl.contract import Answer
from tunekit.rl.rewards._shared.block import RewardBlock
from tunekit.rl.rewards._shared.right import NO_ANSWER, by_metric


class Config(RewardBlock):
    """The answer's number is the right one, by the rules of the metric of that name."""

    kind: Literal["numeric_answer"]
    relative_tolerance: float = Field(
        0.0, ge=0, lt=1, description="largest difference that still counts, as a share of the right number"
    )


def fault(reference: str, config: Config) -> str:
    """Whether there is a right answer, with a number in it."""
    if not reference:
        return NO_ANSWER
    number = METRICS.load("numeric_answer").last_number(reference)
    return f"there is no number in the right answer: {reference[:60]!r}" if number is None else ""


def score(answers: Sequence[Answer], config: Config) -> list[float]:
    """1.0 or 0.0 an answer."""
    return by_metric("numeric_answer", answers, config)
