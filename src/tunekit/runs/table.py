"""`tunekit runs list` and `tunekit runs show`: what the records of past runs say."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tunekit.core.errors import UserError
from tunekit.runs.environment import environment_words
from tunekit.runs.layout import RunFolder, list_runs
from tunekit.runs.lock import is_held
from tunekit.runs.record import FATES, Record, SplitPart, read_record
from tunekit.runs.summary import console_summary, pairs, slim_table, two_lines
from tunekit.runs.verdict import metric_name, show_value
from tunekit.runs.wording import count, duration, number, when

_STATUS = {"done": "green", "failed": "red", "unreadable": "red", "stopped": "yellow", "interrupted": "yellow"}


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run in the list.

    ``status`` is the record's, or "interrupted" when the run ended without a word, or "unreadable" when the record is
    damaged; ``note`` says how.
    """

    name: str
    path: str
    status: str
    method: str = ""
    model: str = ""
    steps: int | None = None
    final_loss: float | None = None
    metric: str = ""
    values: str = ""
    created: str = ""
    note: str = ""


def runs_table(root: Path) -> list[RunRow]:
    """The runs at or below ``root``, newest first; one with a damaged record is listed as unreadable, last."""
    rows = [_row(folder) for folder in list_runs(root)]
    return sorted(rows, key=lambda row: row.created, reverse=True)


def _row(folder: RunFolder) -> RunRow:
    try:
        record = read_record(folder)
    except UserError as error:
        return RunRow(folder.name, str(folder.path), "unreadable", note=str(error.problems[0].what))
    training = record.training
    metric, values = _metric(record)
    return RunRow(
        name=folder.name,
        path=str(folder.path),
        status=_status(record, folder),
        method=record.method,
        model=record.model.name if record.model else "",
        steps=training.steps if training else None,
        final_loss=training.final_loss if training else None,
        metric=metric,
        values=values,
        created=record.created,
        note=record.error.problems[0].what if record.error else "",
    )


def _status(record: Record, folder: RunFolder) -> str:
    """The record's status; a run that is said to be running but whose folder nobody holds was interrupted."""
    if record.status != "running":
        return record.status
    try:
        return "running" if is_held(folder.path) else "interrupted"
    except OSError:  # where locks cannot be asked for, the record's word stands
        return "running"


def _metric(record: Record) -> tuple[str, str]:
    """The key metric's name and its values before and after: (``exact match``, ``31.2 % → 58.4 %``)."""
    key = record.evaluation.key if record.evaluation else None
    if key is None:
        return "", ""
    base = f"{show_value(key, key.base.value)} → " if key.base else ""
    return metric_name(key), base + show_value(key, key.tuned.value)


def runs_grid(rows: Sequence[RunRow]) -> RenderableType:
    """The rows as a table for the terminal, two lines each, so that it fits 80 columns."""
    if not rows:
        return Text("no runs here yet", style="dim")
    table = slim_table()
    table.add_column("run\nmodel", overflow="fold")
    table.add_column("method\nstatus", overflow="fold", max_width=11)
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("loss", justify="right", no_wrap=True)
    table.add_column("key metric\nbase → tuned", overflow="fold")
    table.add_column("when\n(UTC)", no_wrap=True)
    for row in rows:
        status = Text.assemble(f"{row.method}\n" if row.method else "", (row.status, _STATUS.get(row.status, "")))
        steps, loss = (count(row.steps), number(row.final_loss)) if row.steps is not None else ("–", "–")
        metric = two_lines(row.metric, row.values) if row.metric else Text(row.note, style="dim")
        date, _, time = when(row.created or None).partition(" ")
        table.add_row(two_lines(row.name, row.model), status, steps, loss, metric, two_lines(date, time))
    return table


def run_details(path: Path) -> list[RenderableType]:
    """Everything the record of the run in ``path`` says, as parts to print one after another.

    Raises:
        UserError: there is no record there, or it is damaged.
    """
    folder = RunFolder(path)
    record = read_record(folder)
    status = _status(record, folder)
    next_commands = [f"tunekit resume {shlex.quote(str(path))}"] if status == "interrupted" else []
    about = [
        ("run", folder.name),
        ("method", record.method),
        ("status", status),
        ("started", when(record.created)),
    ]
    if record.model:
        about.append(("base model", record.model.name))
    parts: list[RenderableType] = [pairs(about), "", console_summary(record, folder, next_commands)]
    if record.data:
        parts += ["", _data_table(record.data.splits)]
    took = [(name, duration(seconds)) for name, seconds in record.seconds.items()]
    for title, rows in [("Time", took), *environment_words(record)]:
        if rows:
            parts += ["", Text(title, style="bold"), pairs(rows)]
    return parts


def _data_table(splits: dict[str, SplitPart]) -> Table:
    table = slim_table()
    table.add_column("data", no_wrap=True)
    for name in ("rows", *FATES, "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, split in splits.items():
        table.add_row(name, count(split.rows), *(count(getattr(split, fate)) for fate in FATES), count(split.tokens))
    return table
