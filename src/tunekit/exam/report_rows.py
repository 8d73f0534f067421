"""The rows of results.parquet, and what the report says of each: who was right, and what changed."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunekit.core.errors import UserError
from tunekit.exam.facts import RESULTS, ExamTask

Mark = Literal["right", "wrong", ""]
Change = Literal["won", "lost", "same", ""]
COLUMNS = (
    "task", "metric", "where", "prompt", "reference", "base_text", "tuned_text", "base_value", "tuned_value",
    "contaminated",
)  # fmt: skip
MOST_SHOWN = 10_000  # rows of a page; a longer evaluation is drawn from
_SAME = 1e-9  # scores that differ by rounding only


@dataclass(frozen=True, slots=True)
class Score:
    """A row's score under one metric, before and after; None where it was not measured."""

    base: float | None
    tuned: float | None
    mark: Mark = ""
    change: Change = ""


@dataclass(slots=True)
class Sample:
    """One input row of a task with its answers, and its scores by metric."""

    task: str
    where: str
    prompt: str
    reference: str
    base: str | None
    tuned: str | None
    contaminated: bool
    scores: dict[str, Score] = field(default_factory=dict)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``results.parquet``: one a task, metric and input row; nan stays nan, and null None.

    Raises:
        UserError: there is no such file, it is damaged, or columns are missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / RESULTS
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise UserError(f"there is no {RESULTS}", where=str(folder), fix="evaluate again") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"damaged results: {error}", where=str(path), fix="evaluate again") from error
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise UserError(f"damaged results: no column {', '.join(missing)}", where=str(path), fix="evaluate again")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def samples_of(rows: Sequence[Mapping[str, Any]], tasks: Sequence[ExamTask]) -> list[Sample]:
    """The rows put together by task and input row, in their order, with the marks of every score."""
    known = {(task.name, task.metric): task for task in tasks}
    marked = _marked(rows, known)
    met: Counter[tuple[str, str, str]] = Counter()
    found: dict[tuple[str, str, int], Sample] = {}
    for row in rows:
        pair = (row["task"], row["metric"])
        met[(*pair, row["where"])] += 1  # one input row may be asked several times
        sample = found.setdefault(
            (row["task"], row["where"], met[(*pair, row["where"])]),
            Sample(
                row["task"],
                row["where"] or "",
                row["prompt"] or "",
                row["reference"] or "",
                row["base_text"],
                row["tuned_text"],
                bool(row["contaminated"]),
            ),
        )
        sample.scores[row["metric"]] = _score(row, known.get(pair), pair in marked)
    return list(found.values())


def drawn(samples: Sequence[Sample], most: int = MOST_SHOWN) -> list[Sample]:
    """At most ``most`` of them, drawn without looking at them, in their own order."""
    if len(samples) <= most:
        return list(samples)
    return [samples[at] for at in sorted(random.Random(0).sample(range(len(samples)), most))]


def changes_of(samples: Sequence[Sample]) -> dict[tuple[str, str], Counter[Change]]:
    """How many rows were won, lost and stayed the same, by task and metric."""
    counts: dict[tuple[str, str], Counter[Change]] = {}
    for sample in samples:
        for metric, score in sample.scores.items():
            counts.setdefault((sample.task, metric), Counter())[score.change] += 1
    return counts


def _marked(rows: Sequence[Mapping[str, Any]], known: Mapping[tuple[str, str], ExamTask]) -> set[tuple[str, str]]:
    """The tasks and metrics whose rows can be right or wrong: means of scores between 0 and 1, where more is better."""
    fits = {pair for pair, task in known.items() if task.statistic == "mean" and task.higher_is_better}
    for row in rows:
        values = (row["base_value"], row["tuned_value"])
        if any(value is not None and not math.isnan(value) and not 0 <= value <= 1 for value in values):
            fits.discard((row["task"], row["metric"]))
    return fits


def _score(row: Mapping[str, Any], task: ExamTask | None, marked: bool) -> Score:
    base, tuned = row["base_value"], row["tuned_value"]
    if task is not None and task.statistic == "corpus":  # a row has no number of its own there, which is no fault
        base, tuned = (None if value is not None and math.isnan(value) else value for value in (base, tuned))
    mark: Mark = ""
    if marked and tuned in (0.0, 1.0):
        mark = "right" if tuned else "wrong"
    change: Change = ""
    if task is not None and base is not None and tuned is not None and not math.isnan(tuned - base):
        moved = tuned - base if task.higher_is_better else base - tuned
        change = "same" if abs(moved) <= _SAME * max(1.0, abs(base)) else "won" if moved > 0 else "lost"
    return Score(base, tuned, mark, change)
