"""Pairs of a chosen and a rejected answer: which of them a model finds likelier."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tunekit.core.progress import Screen
from tunekit.evaluate.choices import results
from tunekit.evaluate.contract import Engine, EvalItem, Likelihood, TaskResult
from tunekit.evaluate.scoring import Scores


@dataclass(frozen=True)
class PairItem(EvalItem):
    """A row with a second, worse answer: ``rejected_ids`` is the whole text with it, of which that is trained."""

    rejected_ids: tuple[int, ...] = ()
    rejected_trained: tuple[bool, ...] = ()


def better(margin: float) -> float:
    """1 for a positive margin, 0 for a negative one, 0.5 between; nan stays nan."""
    return 0.5 if margin == 0 else 1.0 if margin > 0 else 0.0 if margin < 0 else margin


def margin_scores(margins: Sequence[float], unit: str) -> list[Scores]:
    """Accuracy and mean of margins between chosen and rejected answers; ``unit`` says what they are measured in."""
    values = tuple(margins)
    return [
        Scores(tuple(map(better, values)), (), "mean", "", True, "preference_accuracy"),
        Scores(values, (), "mean", unit, True, "margin"),
    ]


def likelier(engine: Engine, items: Sequence[PairItem], screen: Screen) -> list[TaskResult]:
    """Accuracy and margin by the log-likelihoods of the answers, their end-of-turn tokens included."""
    started = time.perf_counter()
    requests = [
        Likelihood(tuple(ids), (False, *trained[1:]))
        for item in items
        for ids, trained in ((item.input_ids, item.trained), (item.rejected_ids, item.rejected_trained))
    ]
    values = [answer.value for answer in engine.likelihoods(requests, screen, "preference")]
    margins = [chosen - rejected for chosen, rejected in zip(values[::2], values[1::2], strict=True)]
    return results("preference", margin_scores(margins, "nats an answer"), items, (), started)
