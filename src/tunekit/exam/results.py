"""Results of baseline and model put together: tasks of the record, and the rows of results.parquet."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any, Literal

from tunekit.core.errors import DataError
from tunekit.evaluate.contract import TaskResult
from tunekit.evaluate.run import entry, part
from tunekit.exam.facts import RESULTS, ExamTask
from tunekit.runs.record import TaskPart

SEED = 0  # of resampling


def pairs(
    before: Sequence[TaskResult] | None, after: Sequence[TaskResult]
) -> list[tuple[TaskResult | None, TaskResult]]:
    """Each result of the model with the baseline's of the same task and metric.

    Raises:
        DataError: the two were not measured on the same rows.
    """
    known = {(result.name, result.metric): result for result in before or ()}
    found = []
    for new in after:
        old = known.get((new.name, new.metric))
        if old is not None and [item.where for item in old.items] != [item.where for item in new.items]:
            missing = len({item.where for item in old.items} ^ {item.where for item in new.items})
            what = f"baseline and model were not measured on the same rows: {missing:,} differ"
            raise DataError(what, where=new.name, fix="the two tokenizers or templates cannot use the same rows")
        found.append((old, new))
    return found


def task_of(base: TaskResult | None, tuned: TaskResult, confidence: float, leaks: frozenset[str] | None) -> ExamTask:
    """One task under one metric, as the record has it.

    Args:
        base: the baseline's result.
        tuned: the model's.
        confidence: of intervals and verdict.
        leaks: places of the rows that stand in the training data; None when that is not known.
    """
    clean = None
    kept = [row for row, item in enumerate(tuned.items) if item.where not in (leaks or ())]
    if leaks and kept and len(kept) < len(tuned.items):
        clean = TaskPart(**entry(part(base, kept) if base else None, part(tuned, kept), confidence, SEED))
    kind: Literal["mean", "perplexity", "corpus"] = "corpus"
    if not callable(tuned.statistic):
        kind = tuned.statistic
    return ExamTask(
        **entry(base, tuned, confidence, SEED),
        statistic=kind,
        note=tuned.note,
        clean=clean,
        seconds=tuned.seconds,
        options=dict(tuned.options) if tuned.options is not None else None,
    )


def with_adjusted(tasks: Sequence[ExamTask]) -> tuple[ExamTask, ...]:
    """The tasks with p-values that account for one another, where several were compared."""
    from tunekit.evaluate.statistics import adjusted

    values = [task.difference.p_value if task.compared and task.difference else None for task in tasks]
    if sum(value is not None for value in values) < 2:
        return tuple(tasks)
    found = adjusted([nan if value is None else value for value in values])
    return tuple(
        task.model_copy(update={"adjusted": None if isnan(value) else value})
        for task, value in zip(tasks, found, strict=True)
    )


def write(
    folder: Path, before: Sequence[TaskResult] | None, after: Sequence[TaskResult], leaks: frozenset[str] | None
) -> None:
    """Writes ``results.parquet``: a row for each task, metric and input row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA}
    for base, tuned in pairs(before, after):
        for row, item in enumerate(tuned.items):
            values = (
                tuned.name,
                tuned.metric,
                item.where,
                item.prompt_text,
                item.reference,
                base.texts[row] if base and base.texts else None,
                tuned.texts[row] if tuned.texts else None,
                _shown(base, row) if base else None,
                _shown(tuned, row),
                item.where in leaks if leaks is not None else None,
                tuned.weights[row],
                tuned.totals[row] if tuned.totals else None,
            )
            for name, value in zip(_SCHEMA, values, strict=True):
                columns[name].append(value)
    schema = pa.schema(
        [(name, pa.list_(pa.float64()) if kind == "list" else getattr(pa, kind)()) for name, kind in _SCHEMA.items()]
    )
    pq.write_table(pa.table(columns, schema=schema), folder / RESULTS, compression="zstd")


_SCHEMA = {
    "task": "string",
    "metric": "string",
    "where": "string",
    "prompt": "string",
    "reference": "string",
    "base_text": "string",
    "tuned_text": "string",
    "base_value": "float64",
    "tuned_value": "float64",
    "contaminated": "bool_",
    "weight": "float64",
    "tuned_totals": "list",
}


def _shown(result: TaskResult, row: int) -> float:
    """A row's number by itself: its score, or its likelihood in nats a token."""
    value, weight = result.values[row], result.weights[row]
    return value / weight if weight else float("nan")
