"""From 0 down to -1: the share of the answer's n-grams that it has said already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from tunekit.evaluate.metrics._shared.ngrams import variety
from tunekit.rl.contract import Answer
from tunekit.rl.rewards._shared.block import RewardBlock


class Config(RewardBlock):
    """A penalty for answers that repeat themselves."""

    kind: Literal["repetition"]
    n: int = Field(3, ge=1, description="words in an n-gram; in scripts without spaces, characters")


def score(answers: Sequence[Answer], config: Config) -> list[float]:
    """From -1.0 to 0.0 an answer: distinct-n less 1; 0.0 for an answer of fewer than ``n`` words.

    J. Li et al., A diversity-promoting objective function for neural conversation models, NAACL 2016.
    """
    shares = variety([answer.text for answer in answers], config.n)
    return [0.0 if share is None else share - 1 for share in shares]
