"""An evaluation in the terminal: verdict, table, what was found in the training data, where everything lies."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from tunekit.exam.facts import PAGE, RECORD, REPORT, RESULTS, ExamRecord, ExamTask
from tunekit.exam.report_compare import Comparison, Line
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
from tunekit.runs.summary import pairs, slim_table, two_lines
from tunekit.runs.verdict import metric_name
from tunekit.runs.wording import count, duration

_TONES = {"good": "bold green", "bad": "bold red", "neutral": "bold"}
_VERDICTS = {"better": "green", "worse": "red"}
_WORDS = 12  # columns below which a column of words is of no use
_GAP = 2
CLEAN = "rows not trained on"


def console_evaluation(record: ExamRecord, folder: Path, next_commands: Sequence[str] = ()) -> RenderableType:
    """The evaluation for a terminal.

    Args:
        record: what was found.
        folder: the evaluation folder, shown as it was given.
        next_commands: what the user can type next.
    """
    words = verdict_of(record)
    parts: list[RenderableType] = [Text(words.title, style=_TONES[words.tone])]
    if record.tasks:
        parts += ["", ResultsGrid(record.tasks), "", Text(interval_note(record), style="dim")]
    if record.forgetting:
        parts += ["", Text(forgetting_words(record.forgetting)), ResultsGrid(record.forgetting)]
    if record.contamination is not None:
        parts += ["", Text(contamination_words(record.contamination))]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in record.warnings]
    return Group(*parts, "", pairs(_facts(record, folder, next_commands)))


def plain_evaluation(
    record: ExamRecord, folder: Path, next_commands: Sequence[str] = (), *, width: int = 80
) -> str:  # fmt: skip
    """The same as plain text, ``width`` columns wide."""
    return _plain(console_evaluation(record, folder, next_commands), width)


def plain_comparison(comparison: Comparison, *, width: int = 80) -> str:
    """The comparison as plain text, ``width`` columns wide."""
    return _plain(ComparisonGrid(comparison), width)


class ResultsGrid:
    """Base beside tuned for every task, intervals below the values; where that is too wide, a block a task."""

    def __init__(self, tasks: Sequence[ExamTask]) -> None:
        self._lines: list[tuple[ExamTask, TaskPart]] = []
        for task in tasks:
            self._lines.append((task, task))
            if task.clean is not None:
                self._lines.append((task, task.clean))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._table() if self._width() <= options.max_width else self._blocks()

    def _width(self) -> int:
        """Columns that the table needs at the least."""
        numbers = [[count(part.n)] for _, part in self._lines], *zip(*(_figures(part) for _, part in self._lines))
        widest = (max((len(text) for cell in column for text in cell), default=0) for column in numbers)
        return sum(widest) + 2 * _WORDS + 5 * _GAP

    def _table(self) -> Table:
        table = slim_table()
        table.add_column("task", overflow="fold")
        for name in ("n", "base", "tuned", "change"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("verdict")
        for task, part in self._lines:
            judged = two_lines(verdict_word(part), p_words(part), _VERDICTS.get(part.verdict or "", "dim"))
            label = two_lines(task.name, metric_name(task)) if part is task else Text(CLEAN, style="dim")
            table.add_row(label, count(part.n), *(two_lines(*cell) for cell in _figures(part)), judged)
        return table

    def _blocks(self) -> RenderableType:
        blocks: list[RenderableType] = []
        for task, part in self._lines:
            title = f"{task.name}, {metric_name(task)}"
            blocks.append(Text(title, style="bold") if part is task else Text(f"{title}, {CLEAN}"))
            base, tuned, change = (f"{value} ({below})" if below else value for value, below in _figures(part))
            verdict = ", ".join(words for words in (verdict_word(part), p_words(part)) if words)
            names = ("n", "base", "tuned", "change", "verdict")
            blocks.append(pairs(list(zip(names, (count(part.n), base, tuned, change, verdict), strict=True))))
        return Group(*blocks)


class ComparisonGrid:
    """Tasks by models: a value, and below it how it differs from the first model's; several tables where it is wide."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._columns = [[_cell(line, at) for line in comparison.lines] for at in range(len(comparison.models))]
        # words may go on below one another, numbers may not
        self._widths = [max([_WORDS, *(len(n) for _, numbers in column for n in numbers)]) for column in self._columns]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        part: list[int] = []
        for at in range(len(self._columns)):
            if part and _WORDS + sum(self._widths[i] + _GAP for i in (*part, at)) > options.max_width:
                yield self._table(part)
                yield ""
                part = []
            part.append(at)
        yield self._table(part)
        for note in self._comparison.notes:
            yield Text(note, style="dim")

    def _table(self, part: Sequence[int]) -> Table:
        table = slim_table()
        table.add_column("task", overflow="fold")
        for at in part:
            table.add_column(self._comparison.models[at], justify="right", overflow="fold", width=self._widths[at])
        for row, line in enumerate(self._comparison.lines):
            cells = (self._columns[at][row][0] for at in part)
            table.add_row(two_lines(line.name, metric_name(line.known)), *cells)
        return table


def _figures(part: TaskPart) -> tuple[tuple[str, str], ...]:
    """(value, interval) of base, tuned and change."""
    return estimate_words(part, part.base), estimate_words(part, part.tuned), change_words(part, part.difference)


def _cell(line: Line, at: int) -> tuple[Text, tuple[str, ...]]:
    """A cell of a comparison, and the numbers in it that stay in one line."""
    cell = line.cells[at]
    if cell is None:
        return Text("–", style="dim"), ()
    value, interval = estimate_words(line.known, cell.tuned)
    if cell.difference is None:
        return two_lines(value, interval), (value, interval)
    change, _ = change_words(line.known, cell.difference)
    words = (f"\n{change} {verdict_word(cell)}", _VERDICTS.get(cell.verdict or "", "dim"))
    return Text.assemble(value, (f"\n{interval}" if interval else "", "dim"), words), (value, interval, change)


def _facts(record: ExamRecord, folder: Path, next_commands: Sequence[str]) -> list[tuple[str, str]]:
    """What was asked, what it took, and where everything lies."""
    facts = [("model", record.models.tuned.name)]
    if record.models.baseline is not None:
        facts.append(("baseline", record.models.baseline.name))
    if record.seconds:
        facts.append(("time", duration(sum(record.seconds.values()))))
    facts += [
        (what, str(folder / name))
        for what, name in (("report", REPORT), ("", PAGE), ("rows", RESULTS), ("record", RECORD))
        if (folder / name).exists()
    ]
    facts += [("next" if at == 0 else "", command) for at, command in enumerate(next_commands)]
    return facts


def _plain(shown: RenderableType, width: int) -> str:
    text = io.StringIO()
    Console(file=text, width=width, color_system=None, force_terminal=False, highlight=False).print(shown)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
