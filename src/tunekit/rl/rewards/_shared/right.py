"""Rewards that are a metric over answer and right answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunekit.core.registry import METRICS
from tunekit.rl.contract import Answer

NO_ANSWER = "the row has no right answer"


def by_metric(name: str, answers: Sequence[Answer], config: Any) -> list[float]:
    """A metric's score of each answer against its row's right answer; ``config`` has the metric's options."""
    texts, references = [answer.text for answer in answers], [(answer.reference,) for answer in answers]
    return list(METRICS.load(name).score(texts, references, config))
