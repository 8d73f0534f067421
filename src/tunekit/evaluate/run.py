"""Evaluates a model, and compares the tuned one with the base."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, TypeVar

from tunekit.core.progress import Screen
from tunekit.core.registry import TASKS
from tunekit.evaluate.contract import Item, Spec, TaskResult
from tunekit.evaluate.pairs import PairItem, likelier

if TYPE_CHECKING:
    from tunekit.evaluate.statistics import Array, Interval, Statistic

AnyItem = TypeVar("AnyItem")
ROWS_SEED = 0  # draws the rows of eval.limit: the same rows for every model of every run


def check(items: Sequence[Item], spec: Spec) -> None:
    """Finds before any model is loaded what would make the evaluation fail; all of it at once.

    Raises:
        UserError: a metric is unknown.
        DataError: rows without a prompt, or with a reference that a metric cannot score against.
    """
    if spec.generate:
        task = TASKS.load("generation")
        task.check(rows_of(items, spec.limit), task.Config(metrics=tuple(spec.metrics)))


def rows_of(items: Sequence[AnyItem], limit: int | None) -> list[AnyItem]:
    """At most ``limit`` rows, drawn at random with a fixed seed, in their own order."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[index] for index in sorted(random.Random(ROWS_SEED).sample(range(len(items)), limit))]


def evaluate_model(
    model: Any, tokenizer: Any, items: Sequence[Item], spec: Spec, screen: Screen, *, stop_ids: Sequence[int] = ()
) -> list[TaskResult]:
    """Runs the tasks of the recipe: perplexity or, of pairs, which answer is likelier; and generation where asked for.

    The model is left as it was.

    Args:
        model: a causal language model of transformers or PEFT, on its device.
        tokenizer: the model's.
        items: the rows; ``spec.limit`` is applied here.
        spec: the recipe's ``eval`` block.
        screen: where progress goes.
        stop_ids: ids of tokens that end an answer beside the tokenizer's and the model's end tokens, such as the
            chat template's end of turn.

    Raises:
        UserError, DataError: as ``check`` does, before anything is computed.
    """
    from tunekit.evaluate.local import TransformersEngine

    check(items, spec)
    rows = rows_of(items, spec.limit)
    # what rows have in common is not shared: in the middle of a training the model's attention may have no cache
    engine = TransformersEngine(model, tokenizer, batch_size=spec.batch_size, stop_ids=tuple(stop_ids), share=False)
    results: list[TaskResult] = []
    options: dict[str, dict[str, Any]] = {}
    if pairs := [row for row in rows if isinstance(row, PairItem)]:
        results += likelier(engine, pairs, screen)
    elif any(any(row.trained) for row in rows):
        options["perplexity"] = {}
    if spec.generate:
        options["generation"] = {"max_new_tokens": spec.max_new_tokens, "metrics": tuple(spec.metrics)}
    for name, chosen in options.items():
        task = TASKS.load(name)
        results += task.run(engine, rows, task.Config(**chosen), screen=screen)
    return results


def compare(
    base: Sequence[TaskResult] | None,
    tuned: Sequence[TaskResult],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    samples: int = 8,
) -> dict[str, Any]:
    """The evaluation as plain values: each task's number and interval, what tuning changed, and sample answers.

    Args:
        base: results before training over the same rows, or None when there are none.
        tuned: results after training.
        confidence: of intervals and verdicts.
        seed: of resampling, and of the choice of samples.
        samples: how many rows to show, drawn at random whether right or wrong.

    Returns:
        ``tasks``, ``samples`` and ``seconds``. A number that is not known is nan, and its verdict is None.
    """
    before = {(result.name, result.metric): result for result in base or ()}
    answers_first = sorted(tuned, key=lambda result: not result.texts)  # what tuning was for; then likelihoods
    pairs = [(before.get((result.name, result.metric)), result) for result in answers_first]
    seconds = [{result.name: result.seconds for result in results} for results in (base or (), tuned)]
    return {
        "tasks": [entry(old, new, confidence, seed) for old, new in pairs],
        "samples": next((_samples(old, new, samples, seed) for old, new in pairs if new.texts), []),
        "seconds": sum(sum(of_task.values()) for of_task in seconds),
    }


def entry(base: TaskResult | None, tuned: TaskResult, confidence: float, seed: int) -> dict[str, Any]:
    """One task under one metric as plain values, without a comparison where base and tuned cannot be compared by row.

    They cannot where they were measured in other units, such as the tokens of two tokenizers.
    """
    from tunekit.evaluate.statistics import paired_difference, verdict

    table, statistic, sums = _table(tuned)
    found: dict[str, Any] = {
        "name": tuned.name,
        "metric": tuned.metric,
        "higher_is_better": tuned.higher_is_better,
        "n": len(table),
        "base": None,
        "tuned": _plain(_interval(tuned, confidence, seed)),
        "difference": None,
        "verdict": None,
        "confidence": confidence,
    }
    if base is None:
        return found
    assert len(base.items) == len(tuned.items), f"{tuned.name}: base and tuned were not evaluated on the same rows"
    found["base"] = _plain(_interval(base, confidence, seed))
    if base.weights != tuned.weights and not callable(tuned.statistic):
        both = [row for row, pair in enumerate(zip(base.weights, tuned.weights, strict=True)) if all(pair)]
        base, tuned = part(base, both), part(tuned, both)  # rows that count for both, such as those that were judged
        table = _table(tuned)[0]
        if base.weights == tuned.weights:
            sides = {
                "base": _plain(_interval(base, confidence, seed)),
                "tuned": _plain(_interval(tuned, confidence, seed)),
            }
            found |= {"n": len(table), **sides}
    other = _table(base)[0]
    if base.weights != tuned.weights or other.shape != table.shape:
        return found
    difference = paired_difference(other, table, statistic, confidence, seed=seed, sums=sums)
    return found | {
        # where the rows do not tell how sure the number is, their exchange does not tell either
        "difference": _plain(difference) | {"p_value": difference.p_value if isfinite(difference.low) else nan},
        "verdict": verdict(difference, higher_is_better=tuned.higher_is_better, confidence=confidence),
    }


def part(result: TaskResult, rows: Sequence[int]) -> TaskResult:
    """The result over some of its rows."""
    fields = ("values", "weights", "items", "texts", "totals")
    taken: dict[str, Any] = {
        name: tuple(getattr(result, name)[row] for row in rows) for name in fields if getattr(result, name)
    }
    return replace(result, **taken)


def _table(result: TaskResult) -> tuple[Array, Statistic, bool]:
    """The rows that count, (N,) or (N, C), the statistic over them, and whether it is one of sums."""
    import numpy as np

    from tunekit.evaluate import statistics

    if callable(result.statistic):
        return np.array(result.totals, dtype=np.float64), result.statistic, True
    table = np.array([(value, weight) for value, weight in zip(result.values, result.weights, strict=True) if weight])
    table = table.reshape(-1, 2)
    if result.statistic == "perplexity":
        return table, statistics.perplexity, False
    if (table[:, 1] == 1).all():
        return table[:, 0], statistics.mean, False
    return table, statistics.weighted_mean, False


def _interval(result: TaskResult, confidence: float, seed: int) -> Interval:
    """Wilson's interval for rows of 0 and 1, the bootstrap's for all else."""
    import numpy as np

    from tunekit.evaluate.statistics import bootstrap_interval, wilson_interval

    table, statistic, sums = _table(result)
    if table.ndim == 1 and np.isin(table, (0.0, 1.0)).all():
        return wilson_interval(int(table.sum()), len(table), confidence)
    return bootstrap_interval(table, statistic, confidence, seed=seed, sums=sums)


def _plain(found: Any) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


def _samples(base: TaskResult | None, tuned: TaskResult, count: int, seed: int) -> list[dict[str, Any]]:
    """``count`` rows of a result with texts, drawn without looking at them, in their own order."""
    rows = range(len(tuned.items))
    return [
        {
            "prompt": tuned.items[row].prompt_text,
            "reference": tuned.items[row].reference,
            "base": base.texts[row] if base else None,
            "tuned": tuned.texts[row],
            "base_correct": _correct(base.values[row]) if base else None,
            "tuned_correct": _correct(tuned.values[row]),
            "where": tuned.items[row].where,
        }
        for row in sorted(random.Random(seed).sample(rows, min(count, len(rows))))
    ]


def _correct(value: float) -> bool | None:
    """Right or wrong; None for a score that is neither."""
    return bool(value) if value in (0.0, 1.0) else None
