"""The evaluation as Markdown: what a pull request or a model card can show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tunekit.core.files import write_atomic
from tunekit.exam.facts import PAGE, ExamRecord, ExamTask, load
from tunekit.exam.report_compare import Comparison
from tunekit.exam.report_words import (
    change_words,
    contamination_words,
    estimate_words,
    forgetting_words,
    interval_note,
    p_words,
    verdict_of,
    verdict_word,
)
from tunekit.runs.record import TaskPart
from tunekit.runs.verdict import metric_name
from tunekit.runs.wording import count, when

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#&$])")
_HEADS = ("Task", "Metric", "Rows", "Base", "Tuned", "Change", "Verdict")


def write_markdown(folder: Path) -> Path:
    """Writes ``report.md`` from record.json, and gives its path.

    Raises:
        UserError: the record is missing or damaged.
    """
    path = folder / PAGE
    write_atomic(path, markdown(load(folder)))
    return path


def markdown(record: ExamRecord) -> str:
    """Verdict, table, forgetting and contamination."""
    words = verdict_of(record)
    tuned, baseline = record.models.tuned, record.models.baseline
    models = f"{tuned.name} against {baseline.name}" if baseline else tuned.name
    parts = [f"# {_text(words.title)}", _text(models), *map(_text, words.details)]
    if record.tasks:
        parts += ["## Results", _table(record.tasks), _text(interval_note(record))]
    if record.forgetting:
        parts += ["## Forgetting", _text(forgetting_words(record.forgetting)), _table(record.forgetting)]
    if record.contamination is not None:
        parts += ["## Contamination", _text(contamination_words(record.contamination))]
    if record.warnings:
        parts += ["## Warnings", "\n".join(f"- {_text(warning)}" for warning in record.warnings)]
    parts.append(f"tunekit {_text(record.tunekit)}, {_text(when(record.created))} (UTC)")
    return "\n\n".join(parts) + "\n"


def comparison_markdown(comparison: Comparison) -> str:
    """Tasks by models, each value with how it differs from the first model's."""
    lines = [["Task", "Metric", *comparison.models]]
    for line in comparison.lines:
        cells = []
        for cell in line.cells:
            words = [] if cell is None else [" ".join(_with(*estimate_words(line.known, cell.tuned)))]
            if cell is not None and cell.difference is not None:
                words.append(f"{change_words(line.known, cell.difference)[0]} {verdict_word(cell)}")
            cells.append(", ".join(words) or "–")
        lines.append([line.name, metric_name(line.known), *cells])
    return _grid(lines, numbers=range(2, len(lines[0]))) + "".join(f"\n{_text(note)}\n" for note in comparison.notes)


def _table(tasks: Sequence[ExamTask]) -> str:
    lines: list[Sequence[str]] = [_HEADS]
    for task in tasks:
        lines.append((task.name, metric_name(task), *_figures(task)))
        if task.clean is not None:
            lines.append(("", "rows not trained on", *_figures(task.clean)))
    return _grid(lines, numbers=range(2, 6)).rstrip()


def _figures(task: TaskPart) -> list[str]:
    cells = [estimate_words(task, task.base), estimate_words(task, task.tuned), change_words(task, task.difference)]
    verdict = ", ".join(words for words in (verdict_word(task), p_words(task)) if words)
    return [count(task.n), *(" ".join(_with(*cell)) for cell in cells), verdict]


def _with(value: str, interval: str) -> list[str]:
    return [value, f"({interval})"] if interval else [value]


def _grid(lines: Sequence[Sequence[str]], *, numbers: range) -> str:
    """A table; the first line is its head."""
    head, *body = ([_text(cell) for cell in line] for line in lines)
    rule = ["---:" if at in numbers else "---" for at in range(len(head))]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *body))


def _text(text: str) -> str:
    """Plain text in one line: nothing in it is markup."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
