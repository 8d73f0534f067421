"""The screen of a terminal: one live display with a bar for every running step and the last values of the training."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tunekit.core.errors import Problem
from tunekit.core.progress import Step
from tunekit.runs.metric_words import MFU_WORDS, broken, metric_words
from tunekit.runs.screen import ProgressStep, closing_line
from tunekit.runs.wording import NOT_FINITE, as_float, clock, count, sparkline

_REFRESHES = 5  # a second
_CURVE = 30  # values in the small curve
_LEADS = ("reward", "loss")  # the first of these that is logged has its curve shown
_INDENT = 2


class RichScreen:
    """Live bars on stderr that leave one line behind for every closed step.

    Other output of the process (library warnings, prints) appears above the bars while they run, as long as it goes to
    the same terminal; a redirected stdout is left alone.

    Args:
        stream: the terminal; stderr when None.
        console: used instead of a console on ``stream``; for tests.
    """

    def __init__(self, stream: TextIO | None = None, *, console: Console | None = None) -> None:
        self._console = console or Console(file=stream or sys.stderr, highlight=False)
        self._display = _Display()
        self._live: Live | None = None
        self._spelled = False  # whether it was said what MFU is

    @contextmanager
    def step(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Step]:
        """Shows a bar; leaves ``✓ reading 4,000 rows  1.2 s``, or a ✗ when the step was left by an exception."""
        step = ProgressStep(name, total, unit)
        self._display.steps = (*self._display.steps, step)
        self._start()
        finished = False
        try:
            yield step
            finished = True
        finally:
            words = closing_line(name, step.done, unit, step.seconds, step.text, failed=not finished)
            self._display.steps = tuple(other for other in self._display.steps if other is not step)
            if not self._display.steps:
                self.close()
            self._console.print(Text.assemble(("✓ ", "green") if finished else ("✗ ", "red"), words))

    def say(self, text: str) -> None:
        """One line above the bars."""
        self._console.print(Text(text))

    def warn(self, text: str) -> None:
        """One line above the bars, marked."""
        self._console.print(Text.assemble(("! ", "bold yellow"), (text, "yellow")))

    def metrics(self, values: dict[str, Any]) -> None:
        """Updates the lines of values below the bars; values that are not finite are also said above them.

        A running step counted in steps that was opened without a total takes ``total_steps`` as its total.
        """
        if not self._spelled and any(label == "MFU" for label, _ in metric_words(values)):
            self._spelled = True
            self.say(MFU_WORDS)
        self._display.take(values)
        total = values.get("total_steps")
        for step in self._display.steps:
            if step.total is None and step.unit == "steps" and total:
                step.total = int(total)
        if self._live is None or broken(values):
            self._console.print(*self._display.metric_lines(self._console.width), sep="\n")

    def close(self) -> None:
        """Takes the bars away and gives the cursor back; closing the last step does it too."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()
            self._display.forget()

    def _start(self) -> None:
        if self._live is None:
            self._live = Live(
                self._display,
                console=self._console,
                refresh_per_second=_REFRESHES,
                transient=True,
                redirect_stdout=sys.stdout.isatty(),
                vertical_overflow="crop",
            )
            self._live.start()


class _Display:
    """What the live display draws; drawn from another thread, so its parts are replaced whole, never changed."""

    def __init__(self) -> None:
        self.steps: tuple[ProgressStep, ...] = ()
        self._curves: dict[str, deque[float]] = {}
        self._values: dict[str, Any] = {}

    def take(self, values: dict[str, Any]) -> None:
        """Takes in a line of metrics; what it does not mention keeps its last value."""
        for key in _LEADS:
            value = as_float(values.get(key))
            if value is not None:
                curve = deque([*self._curves.get(key, ()), value], maxlen=_CURVE)
                self._curves = self._curves | {key: curve}
        self._values = self._values | values

    def forget(self) -> None:
        """Forgets the training's values."""
        self._values, self._curves = {}, {}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        names = max((len(step.name) for step in self.steps), default=0)
        for step in self.steps:
            yield _bar_line(step, min(names, width // 3), width)
        yield from self.metric_lines(width)

    def metric_lines(self, width: int) -> list[Text]:
        """The last values, in lines no wider than ``width``; the loss leads, the reward (else the loss) has a curve."""
        if not self._values:
            return []
        first = [Text(self._step_words(), style="dim")] if "step" in self._values else []
        rest: list[Text] = []
        lead = next((key for key in _LEADS if key in self._curves), "")
        values = self._curves.get(lead, ())
        for label, shown in metric_words(self._values):
            word = Text(f"{label} " if label else "", style="dim")
            word.append(shown, style="bold red" if shown in NOT_FINITE else "not dim")
            if label == lead and len(values) > 1:
                curve = max(8, min(_CURVE, width - 50))
                word.append(f" {sparkline(values, curve):{curve}}", style="cyan not dim")
            (first if label in ("loss", "eval loss", lead) else rest).append(word)
        left = as_float(self._values.get("seconds_left"))
        if left is not None and not any(step.total for step in self.steps):
            rest.append(Text(f"{clock(left)} left", style="dim"))
        return [*_wrap(first, width), *_wrap(rest, width)]

    def _step_words(self) -> str:
        total = self._values.get("total_steps")
        return f"step {count(self._values['step'])}" + (f"/{count(total)}" if total else "")


def _wrap(words: Sequence[Text], width: int) -> list[Text]:
    """Joins words into indented lines with two spaces between, starting a new line where the next would not fit."""
    lines: list[Text] = []
    for word in words:
        if lines and lines[-1].cell_len + 3 + word.cell_len < width:
            lines[-1].append("   ").append_text(word)
        else:
            lines.append(Text(" " * _INDENT, no_wrap=True, overflow="ellipsis").append_text(word))
    return lines


def _bar_line(step: ProgressStep, names: int, width: int) -> Table:
    """``name ━━━━╺━━━━ 1,200/4,000 rows  30%  0:12  0:28 left``; the rear words go first when it gets narrow."""
    total = step.total
    far = f"{count(step.done)}/{count(total)}" if total else count(step.done) if step.done else ""
    words = [f"{far} {step.unit}".strip()]
    if total:
        words.append(f"{min(100, 100 * step.done // total):3d}%")
    words.append(clock(step.seconds))
    left = step.seconds_left
    if left is not None:
        words.append(f"{clock(left)} left")
    if step.text:
        words.append(step.text)
    room = width - _INDENT - names - 2 - max(10, width // 4)
    shown = words[0]
    for word in words[1:]:
        if len(shown) + 2 + len(word) <= room:
            shown += f"  {word}"
    line = Table.grid(expand=True)
    line.add_column(width=names + _INDENT, no_wrap=True, overflow="ellipsis")
    line.add_column(ratio=1, min_width=4)
    line.add_column(no_wrap=True, overflow="ellipsis")
    bar = ProgressBar(total=total, completed=step.done, pulse=total is None, animation_time=step.seconds)
    line.add_row(" " * _INDENT + step.name, Padding(bar, (0, 2)), Text(shown, style="dim"))
    return line


def print_error(stream: TextIO, title: str, problems: Sequence[Problem], more: str) -> None:
    """Prints the error block with hanging indents: what, where and fix of every problem, then ``more``."""
    console = Console(file=stream, highlight=False)
    console.print(Text.assemble(("✗ ", "bold red"), (title, "bold red")))
    for problem in problems:
        console.print()
        console.print(Padding(Text(problem.what), (0, 0, 0, 2)))
        block = Table.grid(padding=(0, 2, 0, 0))
        block.add_column(no_wrap=True, style="dim")
        block.add_column(overflow="fold")
        if problem.where:
            block.add_row("at", Text(problem.where, style="cyan"))
        if problem.fix:
            block.add_row("fix", Text(problem.fix, style="green"))
        if block.row_count:
            console.print(Padding(block, (0, 0, 0, 4)))
    if more:
        console.print(Padding(Text(more, style="dim"), (1, 0, 0, 2)))
