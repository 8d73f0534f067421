"""`tunekit runs list` and `tunekit runs show`: what the records of past runs say."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tunekit.core.errors import UserError
from tunekit.runs.environment import environment_words
from tunekit.runs.last_values import last_values
from tunekit.runs.layout import RunFolder, checkpoints, list_runs, step_of
from tunekit.runs.lock import is_held
from tunekit.runs.metrics import read_metrics
from tunekit.runs.record import FATES, ProgressPart, Record, SplitPart, read_record
from tunekit.runs.summary import console_summary, pairs, slim_table, two_lines
from tunekit.runs.verdict import metric_name, show_value
from tunekit.runs.wording import as_float, count, duration, first_line, number, when

_STATUS = {"done": "green", "failed": "red", "unreadable": "red", "stopped": "yellow", "interrupted": "yellow"}

_NOTE = 60  # characters of an error in the list


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
        return RunRow(folder.name, str(folder.path), "unreadable", note=first_line(error.problems[0].what, _NOTE))
    training = record.training
    progress = progress_of(folder, record) if record.status == "running" else record.progress
    metric, values = _metric(record)
    return RunRow(
        name=folder.name,
        path=str(folder.path),
        status=_status(record, folder),
        method=record.method,
        model=record.model.name if record.model else "",
        steps=training.steps if training else progress.step if progress else None,
        final_loss=training.final_loss if training else progress.loss if progress else None,
        metric=metric,
        values=values,
        created=record.created,
        note=first_line(record.error.problems[0].what, _NOTE) if record.error else "",
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
    if record.status == "running":  # or it was cut off, and had no time to say how far it came
        record = record.updated(progress=progress_of(folder, record, ended=status == "interrupted"))
    progress = record.progress if record.status != "done" else None
    if progress is not None and progress.command is not None:
        progress = progress.model_copy(update={"command": _command(folder)})  # from where the user is now
        record = record.updated(progress=progress)
    next_commands = [progress.command] if progress is not None and progress.command is not None else []
    about = [
        ("run", folder.name),
        ("method", record.method),
        ("status", status),
        ("started", when(record.created)),
    ]
    if record.model:
        about.append(("base model", record.model.name))
    parts: list[RenderableType] = [pairs(about), "", console_summary(record, folder, next_commands)]
    values = last_values(_lines_of(folder))
    if values is not None:
        parts += ["", values]
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


def progress_of(folder: RunFolder, record: Record, *, ended: bool = True) -> ProgressPart:
    """How far the run in a folder came, by what it has written.

    Args:
        folder: the run folder.
        record: the run's record, which knows how many steps were planned.
        ended: the run is no longer at work, so that there is a command that goes on with it.
    """
    logged = [row for row in _lines_of(folder) if "loss" in row]
    last = logged[-1] if logged else {}
    kept = _newest_checkpoint(folder)
    steps = [last.get("step", 0), _last_line(folder.samples(0)).get("step", 0)]
    steps += [step_of(kept)] if kept else []
    return ProgressPart(
        step=max(steps),
        planned_steps=record.progress.planned_steps if record.progress else None,
        loss=as_float(last.get("loss")),
        loss_step=last.get("step"),
        checkpoint=kept.relative_to(folder.path).as_posix() if kept else None,
        command=_command(folder) if ended else None,
    )


def _command(folder: RunFolder) -> str:
    return f"tunekit resume {shlex.quote(str(folder.path))}"


def _lines_of(folder: RunFolder) -> list[dict[str, Any]]:
    try:
        return read_metrics(folder.metrics)
    except (UserError, UnicodeDecodeError):  # a damaged file must not hide what else is known
        return []


def _last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a file of JSON lines, which may be long; nothing when there is none."""
    if not path.exists():
        return {}
    size, tail = 1 << 16, b""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while True:
            file.seek(max(0, end - size))
            tail = file.read(min(size, end))
            lines = tail[: tail.rfind(b"\n") + 1].splitlines()
            if len(lines) > 1 or size >= end:
                break
            size *= 4
    try:
        value = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _newest_checkpoint(folder: RunFolder) -> Path | None:
    """The newest checkpoint with all files of its manifest, in their sizes; to hash gigabytes takes too long here."""
    for path in reversed(checkpoints(folder.checkpoints)):
        try:
            files = json.loads((path / "MANIFEST.json").read_bytes())["files"]
            if all((path / name).stat().st_size == entry["size"] for name, entry in files.items()):
                return path
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None
