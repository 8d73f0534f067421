"""0 where the answer came to its end, -1 where it was cut off at the longest length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tunekit.rl.contract import Answer
from tunekit.rl.rewards._shared.block import RewardBlock


class Config(RewardBlock):
    """A penalty for answers without an end token."""

    kind: Literal["ended"]


def score(answers: Sequence[Answer], config: Config) -> list[float]:
    """0.0 or -1.0 an answer."""
    return [0.0 if answer.ended else -1.0 for answer in answers]
