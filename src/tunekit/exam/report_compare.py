"""Several models on the same tasks, each compared with the first, row by row where the rows are known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import DataError, Problem, raise_all
from tunekit.core.registry import METRICS
from tunekit.exam.facts import RESULTS, ExamRecord, ExamTask, is_evaluation, load
from tunekit.exam.report_rows import read_results
from tunekit.runs.layout import RunFolder
from tunekit.runs.record import Difference, Record, read_record
from tunekit.runs.verdict import in_percent
from tunekit.runs.wording import amount

if TYPE_CHECKING:
    from tunekit.evaluate.statistics import Array, Statistic

Pair = tuple[str, str]  # task and metric
Rows = dict[tuple[str, int], Mapping[str, Any]]  # by place, and which of the rows of that place it is


@dataclass(frozen=True, slots=True)
class Line:
    """A task under a metric; a cell a model, None where it was not evaluated.

    A cell's ``tuned`` is its own model, ``base`` the first; ``reasons`` say why a difference is missing, or nothing.
    """

    name: str
    metric: str
    cells: tuple[ExamTask | None, ...]
    reasons: tuple[str, ...] = ()

    @property
    def known(self) -> ExamTask:
        """A cell whose unit fits all: one that is not in per cent, where there is any."""
        there = [cell for cell in self.cells if cell is not None]
        return next((cell for cell in there if not in_percent(cell)), there[0])


@dataclass(frozen=True, slots=True)
class Comparison:
    """Tasks by models; ``notes`` say what could not be compared."""

    models: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """Why differences are missing, each reason once."""
        said = [(f"{line.name}, {line.metric.replace('_', ' ')}", why) for line in self.lines for why in line.reasons]
        return tuple(dict.fromkeys(f"{name}: not compared, for {why}" for name, why in said if why))


def table_of(records: Sequence[tuple[str, Record | ExamRecord]]) -> Comparison:
    """The table of tasks by models, from records alone: values with their intervals, no differences.

    Args:
        records: what each is called, and its record.
    """
    tasks = [_tasks(record) for _, record in records]
    pairs = dict.fromkeys(pair for found in tasks for pair in found)
    lines = [Line(*pair, tuple(found.get(pair) for found in tasks)) for pair in pairs]
    return Comparison(tuple(name for name, _ in records), tuple(lines))


def compare_rows(folders: Sequence[Path], *, seed: int = 0) -> Comparison:
    """The table of tasks by models, each model compared with the first over the same rows.

    Args:
        folders: of runs and evaluations; a folder without results.parquet is shown, but not compared.
        seed: of resampling.

    Raises:
        UserError: a folder has no record, or record or results are damaged.
        DataError: a task was evaluated on other rows, or with other right answers; says how many. Or the folders
            have no task in common.
    """
    records = [load(path) if is_evaluation(path) else read_record(RunFolder(path)) for path in folders]
    table = table_of(list(zip(_names(folders), records, strict=True)))
    results = [_by_task(read_results(path)) if (path / RESULTS).exists() else {} for path in folders]
    if not any(sum(cell is not None for cell in line.cells) > 1 for line in table.lines) and len(folders) > 1:
        what = "the folders have no task in common"
        raise DataError(what, where=", ".join(map(str, folders)), fix="evaluate the models on the same tasks")
    raise_all(DataError, [problem for at in range(1, len(folders)) for problem in _unlike(results, at, folders)])
    lines = []
    for line in table.lines:
        found = [_compared(line, at, results, seed) for at in range(len(folders))]
        lines.append(Line(line.name, line.metric, tuple(cell for cell, _ in found), tuple(why for _, why in found)))
    return Comparison(table.models, tuple(lines))


def _tasks(record: Record | ExamRecord) -> dict[Pair, ExamTask]:
    """A model's tasks; what it was compared with when it was evaluated is left out."""
    if isinstance(record, ExamRecord):
        found: Sequence[ExamTask] = record.everything
    else:
        parts = record.evaluation.tasks if record.evaluation else ()
        found = [
            ExamTask(**part.model_dump(), statistic="perplexity" if part.metric == "perplexity" else "mean")
            for part in parts
        ]
    alone = {"base": None, "difference": None, "verdict": None, "clean": None}
    return {(task.name, task.metric): task.model_copy(update=alone) for task in found}


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, or the whole paths where those are not unique."""
    names = [path.resolve().name for path in folders]
    return names if len(set(names)) == len(names) else [str(path) for path in folders]


def _by_task(rows: Sequence[Mapping[str, Any]]) -> dict[Pair, Rows]:
    found: dict[Pair, Rows] = {}
    met: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        key = (row["task"], row["metric"], row["where"])
        found.setdefault(key[:2], {})[row["where"], met[key]] = row
        met[key] += 1
    return found


def _unlike(results: Sequence[Mapping[Pair, Rows]], at: int, folders: Sequence[Path]) -> list[Problem]:
    """What keeps a folder's rows from being paired with the first folder's, a problem a task."""
    problems = {}
    for pair in results[0].keys() & results[at].keys():
        first, own = results[0][pair], results[at][pair]
        alone = len(first.keys() ^ own.keys())
        other = sum(first[key]["reference"] != own[key]["reference"] for key in first.keys() & own.keys())
        said = [f"{amount(alone, 'rows')} in one of the two only"] if alone else []
        said += [f"{amount(other, 'rows')} with another reference"] if other else []
        if said:
            what = f"task {pair[0]} was evaluated on other rows than in {folders[0]}: {', '.join(said)}"
            problems[pair[0]] = Problem(what, str(folders[at]), "evaluate both on the same data, with the same limit")
    return [problems[name] for name in sorted(problems)]


def _compared(line: Line, at: int, results: Sequence[Mapping[Pair, Rows]], seed: int) -> tuple[ExamTask | None, str]:
    """A cell with its difference from the first model; or without, and why."""
    from tunekit.evaluate.statistics import paired_difference, verdict

    first, own = line.cells[0], line.cells[at]
    if at == 0 or first is None or own is None:
        return own, ""
    own = own.model_copy(update={"base": first.tuned})
    known = first.options is not None and own.options is not None  # a run's record does not keep them
    if first.statistic != own.statistic or (known and first.options != own.options):
        return own, "the metric was set in another way"
    before, after = (found.get((line.name, line.metric)) for found in (results[0], results[at]))
    if before is None or after is None:
        return own, f"want of rows in {RESULTS}"
    table = _columns(own, list(before.values()), [after[key] for key in before])
    if isinstance(table, str):
        return own, table
    found = paired_difference(*table, own.confidence, seed=seed)
    change = Difference(value=found.value, low=found.low, high=found.high, p_value=found.p_value)
    said = verdict(found, higher_is_better=own.higher_is_better, confidence=own.confidence)
    why = "" if said else "a score or the difference is not a number"
    return own.model_copy(update={"difference": change, "verdict": said}), why


def _columns(
    task: ExamTask, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> tuple[Array, Array, Statistic] | str:
    """Both models' rows, (N,) or (N, C), and the statistic over them; or why there are none."""
    import numpy as np

    from tunekit.evaluate import statistics

    def column(rows: Sequence[Mapping[str, Any]], name: str) -> Array:
        return np.array([math.nan if row.get(name) is None else row[name] for row in rows], dtype=np.float64)

    if task.statistic == "corpus":
        return _totals(task, before, after)
    old, new = column(before, "tuned_value"), column(after, "tuned_value")
    weight, other = column(before, "weight"), column(after, "weight")
    if np.isnan(weight).all() and task.statistic == "mean":
        return old, new, statistics.mean
    if np.isnan(weight).any() or np.isnan(other).any():
        return f"want of weights in {RESULTS}"
    if (weight != other).any():
        return "the models count other tokens in the same rows"
    counted = weight > 0
    old, new, weight = old[counted], new[counted], weight[counted]
    if task.statistic == "mean" and (weight == 1).all():
        return old, new, statistics.mean
    statistic = statistics.perplexity if task.statistic == "perplexity" else statistics.weighted_mean
    return np.stack([old * weight, weight], axis=1), np.stack([new * weight, weight], axis=1), statistic


def _totals(
    task: ExamTask, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> tuple[Array, Array, Statistic] | str:
    """Rows of a number that belongs to a whole corpus, from the totals that the metric makes it of."""
    import numpy as np

    from tunekit.evaluate.scoring import config_of

    if task.options is None or any(row.get("tuned_totals") is None for row in (*before, *after)):
        return f"want of totals in {RESULTS}"
    metric = METRICS.load(task.metric)
    own = (
        metric.statistic_of(config_of(task.metric, task.options))
        if hasattr(metric, "statistic_of")
        else metric.statistic
    )
    old, new = (np.asarray([row["tuned_totals"] for row in rows], dtype=np.float64) for rows in (before, after))
    return old, new, lambda means: np.asarray(own(means * len(old)))
