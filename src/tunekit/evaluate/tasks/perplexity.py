"""Perplexity of the evaluation rows, over the tokens that training would learn."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tunekit.core.progress import Screen
from tunekit.evaluate.contract import Engine, Item, Likelihood, StatisticName, TaskResult

READS = "examples"


class Config(BaseModel):
    """Options of the task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    units: tuple[Literal["token", "word", "byte"], ...] = Field(
        default=("token",),
        min_length=1,
        description="perplexity per token or per word (parted by white space), or bits per byte, of the same texts",
    )
    stride: int | None = Field(
        default=None,
        ge=1,
        description="a text longer than the model's positions is read in windows that begin so many tokens apart; "
        "default: half the positions",
    )


def run(engine: Engine, items: Sequence[Item], config: Config, *, screen: Screen) -> list[TaskResult]:
    """Negative log-likelihood of every row's trained tokens; one result a unit.

    The first token of a row has no context and is not counted. Perplexity is exp(sum of the rows' likelihoods / sum
    of their counted units). A likelihood that is nan stays nan. Words and bytes are those of the counted tokens' text.
    """
    started = time.perf_counter()
    requests: list[Likelihood] = []
    owner: list[int] = []
    counts = []
    for index, item in enumerate(items):
        assert len(item.trained) == len(item.input_ids), (item.where, len(item.trained), len(item.input_ids))
        scored = (False, *map(bool, item.trained[1:]))
        counts.append(sum(scored))
        found = _windows(tuple(item.input_ids), scored, engine.positions, config.stride) if any(scored) else []
        requests += found
        owner += [index] * len(found)
    likelihood = [0.0] * len(items)
    for index, answer in zip(owner, engine.likelihoods(requests, screen, "perplexity"), strict=True):
        likelihood[index] -= answer.value
    seconds = time.perf_counter() - started
    return [_result(unit, items, likelihood, counts, engine.tokenizer, seconds) for unit in config.units]


def _windows(
    ids: tuple[int, ...], scored: tuple[bool, ...], positions: int | None, stride: int | None
) -> list[Likelihood]:
    """The text whole, or windows of it: every token is scored once, in the first window that reaches it."""
    if positions is None or len(ids) <= positions + 1:  # the last token is not read
        return [Likelihood(ids, scored)]
    step = min(stride or max(1, positions // 2), max(1, positions - 1))
    found, begin, reached = [], 0, 1
    while reached < len(ids):
        end = min(begin + positions, len(ids))
        flags = tuple(place >= reached and scored[place] for place in range(begin, end))
        if any(flags):
            found.append(Likelihood(ids[begin:end], flags))
        begin, reached = begin + step, end
    return found


def _result(
    unit: str, items: Sequence[Item], likelihood: Sequence[float], counts: Sequence[int], tokenizer: Any, seconds: float
) -> TaskResult:
    metric, statistic, values = "perplexity", "perplexity", tuple(likelihood)
    weights = tuple(map(float, counts))
    if unit != "token":
        runs = [_counted_texts(item, tokenizer) for item in items]
        sizes = [sum(len(text.split()) if unit == "word" else len(text.encode()) for text in texts) for texts in runs]
        weights = tuple(map(float, sizes))
        metric = "word_perplexity"
        if unit == "byte":
            metric, statistic, values = "bits_per_byte", "mean", tuple(nats / math.log(2) for nats in likelihood)
    kind: StatisticName = "mean" if statistic == "mean" else "perplexity"
    return TaskResult(
        name="perplexity",
        metric=metric,
        higher_is_better=False,
        statistic=kind,
        values=values,
        weights=weights,
        items=tuple(items),
        seconds=seconds,
    )


def _counted_texts(item: Item, tokenizer: Any) -> list[str]:
    """The texts of a row's counted tokens, run by run."""
    tokens = zip(item.input_ids, (False, *item.trained[1:]), strict=True)
    runs = ([token for token, _ in run] for trained, run in groupby(tokens, key=lambda pair: bool(pair[1])) if trained)
    return [tokenizer.decode(run, skip_special_tokens=True, clean_up_tokenization_spaces=False) for run in runs]
