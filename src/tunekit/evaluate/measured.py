"""Answers under the metrics that a recipe names: what is found wrong beforehand, and the results afterwards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator

from tunekit.core.errors import DataError, Problem, UserError
from tunekit.core.registry import METRICS
from tunekit.evaluate import scoring
from tunekit.evaluate.contract import TaskResult

MIN_FAMILY = 3
HELP = "what scores the answers: names of metrics, or {name: {option: value}}"


def _one_name(wish: str | dict[str, dict[str, Any]]) -> str | dict[str, dict[str, Any]]:
    if isinstance(wish, dict) and len(wish) != 1:
        raise ValueError("one metric with its options, such as {bleu: {tokenize: zh}}")
    return wish


Wish = Annotated[str | dict[str, dict[str, Any]], AfterValidator(_one_name)]
"""A metric: its name, or {name: options}."""


def wished(metrics: Sequence[Wish]) -> list[tuple[str, Mapping[str, Any]]]:
    """Names and options."""
    return [(wish, {}) if isinstance(wish, str) else next(iter(wish.items())) for wish in metrics]


def expanded(names: Sequence[str]) -> list[str]:
    """Names of metrics, a family's name (``rouge``) standing for all of it (``rouge1``, ``rougeL``, ...)."""
    found: list[str] = []
    for name in names:
        family = [known for known in METRICS.names if known.startswith(name)] if name not in METRICS.names else []
        found += family if name.isalpha() and len(name) > MIN_FAMILY and family else [name]
    return list(dict.fromkeys(found))


def check_metrics(
    metrics: Sequence[Wish], references: Sequence[tuple[str, ...]], places: Sequence[str]
) -> list[Problem]:
    """References that a metric cannot use.

    Args:
        metrics: of the recipe.
        references: right answers of each row.
        places: ``file:line`` of each row.

    Raises:
        UserError: a metric is unknown, or has no such option.
    """
    problems: list[Problem] = []
    names = [name for name, _ in wished(metrics)]
    for name in sorted({name for name in names if names.count(name) > 1}):
        fix = "give each a task of its own, with a name"
        raise UserError(f"metric '{name}' is named twice, and its results could not be told apart", fix=fix)
    for name, options in wished(metrics):
        try:
            scoring.check(name, options, references)
        except DataError as error:
            problems += [Problem(found.what, _place(found.where, places), found.fix) for found in error.problems]
    return problems


def _place(where: str, places: Sequence[str]) -> str:
    """The row's own place; metrics know its number alone."""
    number = re.fullmatch(r"evaluation row (\d+)", where)
    return places[int(number[1]) - 1] if number else where


def result_of(
    task: str, scores: scoring.Scores, texts: Sequence[str], items: Sequence[Any], *, seconds: float
) -> TaskResult:
    """A task's result under one metric."""
    return TaskResult(
        name=task,
        metric=scores.name,
        higher_is_better=scores.higher_is_better,
        statistic=scores.statistic,
        values=tuple(scores.values),
        weights=(1.0,) * len(items),
        items=tuple(items),
        texts=tuple(texts),
        seconds=seconds,
        totals=tuple(map(tuple, scores.totals)),
        note=scores.note,
        options=scores.options,
    )
