"""Pairs of a chosen and a rejected answer: which of them a model finds likelier, or a reward model better."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tunekit.core.progress import Screen
from tunekit.evaluate.choices import in_reach, results
from tunekit.evaluate.contract import Conversation, Engine, EvalItem, Likelihood, TaskResult
from tunekit.evaluate.scoring import Scores

_SURE = 30  # a margin from which on log1p(exp(-margin)) is nothing, and below whose negative it is the margin


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
    ties = sum(margin == 0 for margin in values)
    note = f"{ties:,} of {len(values):,} pairs are ties: each counts 0.5" if ties else ""
    return [
        Scores(tuple(map(better, values)), (), "mean", note, True, "preference_accuracy"),
        Scores(values, (), "mean", unit, True, "margin"),
    ]


def log_loss(margins: Sequence[float]) -> Scores:
    """Cross-entropy of the preference that scores foretell: sure and wrong costs most; ln 2 knows nothing."""
    values = tuple(math.log1p(math.exp(-margin)) if margin > -_SURE else -margin for margin in margins)
    return Scores(values, (), "mean", "nats; 0.693 without any knowledge", False, "log_loss")


def likelier(engine: Engine, items: Sequence[PairItem], screen: Screen, *, normalise: bool = False) -> list[TaskResult]:
    """Accuracy and margin by the log-likelihoods of the answers, their end-of-turn tokens included.

    Args:
        engine: of a model that writes.
        items: the pairs.
        screen: where progress goes.
        normalise: divide each likelihood by the answer's tokens.
    """
    started = time.perf_counter()
    requests = [
        Likelihood(tuple(ids), (False, *trained[1:]))
        for item in items
        for ids, trained in ((item.input_ids, item.trained), (item.rejected_ids, item.rejected_trained))
    ]
    found = engine.likelihoods(requests, screen, "preference")
    values = [answer.value / (answer.tokens if normalise else 1) for answer in found]
    unit = "nats a token" if normalise else "nats an answer"
    return results("preference", margin_scores(_margins(values), unit), items, (), started)


def preferred(engine: Engine, items: Sequence[PairItem], screen: Screen) -> list[TaskResult]:
    """Accuracy, margin and calibration by the scores of a reward model.

    Raises:
        DataError: a conversation is longer than what the model reads.
    """
    started = time.perf_counter()
    texts = [(ids, item.where) for item in items for ids in (item.input_ids, item.rejected_ids)]
    in_reach(engine, [len(ids) for ids, _ in texts], [where for _, where in texts], "preference")
    found = engine.scores([Conversation(tuple(ids)) for ids, _ in texts], screen, "preference")
    margins = _margins([score.value for score in found])
    return results("preference", [*margin_scores(margins, "score"), log_loss(margins)], items, (), started)


def _margins(values: Sequence[float]) -> list[float]:
    return [chosen - rejected for chosen, rejected in zip(values[::2], values[1::2], strict=True)]
