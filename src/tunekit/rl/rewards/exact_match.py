"""1 where the answer equals the row's right answer, else 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tunekit.evaluate.text import TextRules
from tunekit.rl.contract import Answer
from tunekit.rl.rewards._shared.block import RewardBlock
from tunekit.rl.rewards._shared.right import NO_ANSWER, by_metric


class Config(RewardBlock, TextRules):
    """The answer equals the right one, by the rules of the metric of that name."""

    kind: Literal["exact_match"]


def fault(reference: str, config: Config) -> str:
    """Whether there is a right answer."""
    return "" if reference else NO_ANSWER


def score(answers: Sequence[Answer], config: Config) -> list[float]:
    """1.0 or 0.0 an answer."""
    return by_metric("exact_match", answers, config)
