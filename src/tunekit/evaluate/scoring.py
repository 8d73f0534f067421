"""Answers scored by any metric: its options checked, a score a row and totals a row brought to one form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

from pydantic import ValidationError

from tunekit.core.errors import DataError, Problem, UserError, raise_all
from tunekit.core.registry import METRICS, nearest
from tunekit.evaluate.contract import SumStatistic
from tunekit.evaluate.extras import need

References = Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Scores:
    """N answers under one metric; the fields are those of `contract.TaskResult`."""

    values: tuple[float, ...]
    totals: tuple[tuple[float, ...], ...]
    statistic: Literal["mean"] | SumStatistic
    note: str
    higher_is_better: bool
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def number(self) -> float:
        """The metric of all rows together; nan when there is no row."""
        import numpy as np

        if not self.values:
            return math.nan
        if not callable(self.statistic):
            return math.fsum(self.values) / len(self.values)
        return float(self.statistic(np.asarray(self.totals, dtype=np.float64).sum(axis=0, keepdims=True))[0])


def score(
    name: str,
    options: Mapping[str, Any],
    predictions: Sequence[str],
    references: References,
    *,
    probabilities: Sequence[float] | None = None,
    samples: Sequence[Sequence[str]] | None = None,
) -> Scores:
    """Scores N answers.

    Args:
        name: the metric.
        options: its options, as the recipe gives them.
        predictions: N answers.
        references: N times one or more right answers; none for metrics that read no reference.
        probabilities: N, each that of the predicted label, for metrics with ``NEEDS_PROBABILITY``.
        samples: N times several answers to one prompt, for metrics with ``NEEDS_SAMPLES``; by default each prompt's
            one answer.

    Raises:
        UserError: there is no such metric, its options are wrong, or it needs what is not given.
        DataError: a reference that the metric cannot use.
    """
    metric = METRICS.load(name)
    config = config_of(name, options)
    _check_references(name, metric, references)
    given: dict[str, Any] = {}
    if getattr(metric, "NEEDS_PROBABILITY", False):
        if probabilities is None:
            raise UserError(
                f"metric '{name}' needs the probability of each answer, which generated text does not have",
                fix="use it with a task that chooses among given answers",
            )
        given["probabilities"] = probabilities
    answers: Any = predictions
    if getattr(metric, "NEEDS_SAMPLES", False):
        answers = samples if samples is not None else [(prediction,) for prediction in predictions]
    assert len(answers) == len(references), (len(answers), len(references))
    values, totals, statistic = _computed(metric, config, answers, references, given)
    note = metric.note(references, config) if hasattr(metric, "note") else ""
    higher = metric.higher_is_better(config) if hasattr(metric, "higher_is_better") else metric.HIGHER_IS_BETTER
    return Scores(values, totals, statistic, note, higher, name, dict(options))


def check(name: str, options: Mapping[str, Any], references: References) -> None:
    """Finds what would make `score` fail, without any answer; cheap, and asked before a model is loaded.

    Raises:
        UserError: there is no such metric, its options are wrong, or its package is missing.
        DataError: a reference that the metric cannot use.
    """
    metric = METRICS.load(name)
    config = config_of(name, options)
    if hasattr(metric, "PACKAGE"):
        need(metric.PACKAGE, "eval", f"metric '{name}'")
    _check_references(name, metric, references)
    if hasattr(metric, "check"):
        metric.check(references, config)


def config_of(name: str, options: Mapping[str, Any]) -> Any:
    """The ``Config`` of a metric.

    Raises:
        UserError: an option that there is not, with the nearest one, or a value that it does not take.
    """
    config = METRICS.load(name).Config
    try:
        return config(**options)
    except ValidationError as error:
        known = sorted(field.alias or key for key, field in config.model_fields.items())
        raise_all(UserError, [_problem(name, known, dict(found)) for found in error.errors()])
        raise


def _problem(name: str, known: Sequence[str], found: Mapping[str, Any]) -> Problem:
    """One complaint of pydantic in words."""
    key = ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden":
        close = nearest(key, known)
        fix = f"did you mean '{close}'?" if close else f"its options: {', '.join(known) or 'none'}"
        return Problem(f"metric '{name}' has no option '{key}'", fix=fix)
    told = str(found["msg"]).removeprefix("Value error, ")
    where = f"option '{key}' of metric '{name}'" if key else f"metric '{name}'"
    given = "" if not key or found["type"] == "missing" else f"; it is {found['input']!r}"
    return Problem(f"{where}: {told[:1].lower()}{told[1:]}{given}")


def _check_references(name: str, metric: ModuleType, references: References) -> None:
    """Each row has a right answer, where the metric reads it.

    Raises:
        DataError: a row has none.
    """
    assert not any(isinstance(right, str) for right in references), "a row's references are a tuple of texts"
    if not getattr(metric, "NEEDS_REFERENCE", True):
        return
    fix = "give the row an answer, or leave it out"
    raise_all(
        DataError,
        [
            Problem(f"metric '{name}' needs a right answer, and there is none", f"evaluation row {row}", fix)
            for row, right in enumerate(references, start=1)
            if not right
        ],
    )


def _computed(
    metric: ModuleType, config: Any, answers: Sequence[Any], references: References, given: Mapping[str, Any]
) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...], Literal["mean"] | SumStatistic]:
    """Values, totals and statistic of either kind of metric."""
    if hasattr(metric, "score"):
        return tuple(metric.score(answers, references, config, **given)), (), "mean"
    totals = tuple(tuple(row) for row in metric.totals(answers, references, config, **given))
    statistic = metric.statistic_of(config) if hasattr(metric, "statistic_of") else metric.statistic
    if hasattr(metric, "shown"):
        shown = tuple(metric.shown(totals, config))
    else:  # a row by itself is a corpus of one row
        import numpy as np

        shown = tuple(map(float, statistic(np.array(totals, dtype=np.float64)))) if totals else ()
    assert len(shown) == len(totals) == len(answers), (len(shown), len(totals), len(answers))
    return shown, totals, statistic
