"""The screens behind ``core.progress.Screen`` that need no terminal, the choice among all, and the error block."""

from __future__ import annotations

import json as json_module
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tunekit.core.errors import Problem, TunekitError, UserError
from tunekit.core.progress import Screen, Silent, Step
from tunekit.runs.metric_words import MFU_WORDS, broken, metric_words
from tunekit.runs.wording import amount, as_float, clock, count, duration, json_ready

MOST_PROBLEMS = 20  # problems shown in one error block
_EVERY_METRICS = 2.0  # seconds between training lines on a plain screen
_EVERY_PROGRESS = 10.0  # seconds between progress lines on a plain screen
_EVERY_EVENT = 1.0  # seconds between progress events in JSON


def closing_line(name: str, done: int, unit: str, seconds: float, note: str, *, failed: bool) -> str:
    """What remains of a closed step: ``reading 4,000 rows  1.2 s``, or ``reading, ended after 7 rows  1.2 s``."""
    far = (", ended after " if failed else " ") + amount(done, unit) if done else ""
    return f"{name}{far}  {duration(seconds)}" + (f"  {note}" if note else "")


class ProgressStep:
    """The state of a running step, and an estimate of what is left of it.

    Args:
        name: what is being done.
        total: units in all, None when unknown.
        unit: what is counted, in the plural.
    """

    def __init__(self, name: str, total: int | None, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self.text = ""
        self.began = time.monotonic()
        self._marks = [(self.began, 0)]  # (time, done), half a second apart at least

    def advance(self, n: int = 1) -> None:
        """``n`` more units are done."""
        self.done += n
        now = time.monotonic()
        if now - self._marks[-1][0] >= 0.5:
            self._marks = [*self._marks[-60:], (now, self.done)]

    def note(self, text: str) -> None:
        """Keeps a short text to show beside the progress."""
        self.text = text

    @property
    def seconds(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self.began

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the end at the recent pace; None while that is unknown."""
        (since, before), (until, after) = self._marks[0], self._marks[-1]
        if self.total is None or after <= before:
            return None
        left = (self.total - self.done) * (until - since) / (after - before)
        return max(0.0, left - (time.monotonic() - until)) if self.done < self.total else 0.0


class QuietScreen(Silent):
    """Shows warnings and nothing else."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def warn(self, text: str) -> None:
        """One line."""
        print(f"warning: {text}", file=self._stream, flush=True)


class _PlainStep(ProgressStep):
    """Prints a line every few seconds while it runs."""

    def __init__(self, screen: PlainScreen, name: str, total: int | None, unit: str) -> None:
        super().__init__(name, total, unit)
        self._screen, self._shown = screen, self.began

    def advance(self, n: int = 1) -> None:
        super().advance(n)
        now = time.monotonic()
        if now - self._shown >= _EVERY_PROGRESS and self.done != self.total:
            self._shown = now
            far = f"{count(self.done)}/{count(self.total)} {self.unit}" if self.total else amount(self.done, self.unit)
            left = self.seconds_left
            self._screen.say(f"{self.name} {far.rstrip()}" + (f", {clock(left)} left" if left is not None else ""))


class PlainScreen:
    """One line an event, no control characters: for log files, CI and pipes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._shown = -math.inf
        self._held: dict[str, Any] | None = None  # the last training line, when it came too soon to be shown
        self._spelled = False  # whether it was said what MFU is

    @contextmanager
    def step(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Step]:
        """Says that the step began and, on closing, what it did and how long it took."""
        step = _PlainStep(self, name, total, unit)
        self._release()
        self.say(f"{name} ..." if total is None else f"{name} {amount(total, unit)} ...")
        finished = False
        try:
            yield step
            finished = True
        finally:
            self._release()
            words = closing_line(name, step.done, unit, step.seconds, step.text, failed=not finished)
            self.say(f"done: {words}" if finished else f"not finished: {words}")

    def say(self, text: str) -> None:
        """One line."""
        print(text, file=self._stream, flush=True)

    def warn(self, text: str) -> None:
        """One line, marked."""
        self.say(f"warning: {text}")

    def metrics(self, values: dict[str, Any]) -> None:
        """One line, at most every two seconds; evaluations, broken values and a step's last values always show."""
        now = time.monotonic()
        if now - self._shown < _EVERY_METRICS and not broken(values) and "eval_loss" not in values:
            self._held = dict(values)
            return
        if "eval_loss" in values:
            self._release()  # the training line of the same step comes first
        self._shown, self._held = now, None
        found = metric_words(values)
        if not self._spelled and any(label == "MFU" for label, _ in found):
            self._spelled = True
            self.say(MFU_WORDS)
        at = f"step {count(values['step'])}" if "step" in values else "training"
        if values.get("total_steps"):
            at += f"/{count(values['total_steps'])}"
        words = [f"{label} {shown}".strip() for label, shown in found]
        left = as_float(values.get("seconds_left"))
        self.say("  ".join([at, *words] + ([f"{clock(left)} left"] if left is not None else [])))

    def _release(self) -> None:
        """Shows the training line that was held back, if there is one."""
        if self._held is not None:
            held, self._held, self._shown = self._held, None, -math.inf
            self.metrics(held)


class _JsonStep(ProgressStep):
    """Writes a progress event at most every second."""

    def __init__(self, screen: JsonScreen, name: str, total: int | None, unit: str) -> None:
        super().__init__(name, total, unit)
        self._screen, self._shown = screen, self.began

    def advance(self, n: int = 1) -> None:
        super().advance(n)
        if time.monotonic() - self._shown >= _EVERY_EVENT:
            self._shown = time.monotonic()
            self._screen.event("progress", name=self.name, done=self.done, total=self.total, unit=self.unit)

    def note(self, text: str) -> None:
        super().note(text)
        self._screen.event("note", name=self.name, text=text)


class JsonScreen:
    """One JSON object a line on stdout; values that are not finite are the strings "nan", "inf", "-inf"."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout

    def event(self, event: str, /, **values: Any) -> None:
        """Writes one event; its name comes first."""
        line = json_module.dumps({"event": event, **json_ready(values)}, allow_nan=False)
        print(line, file=self._stream, flush=True)

    @contextmanager
    def step(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Step]:
        """Events ``step_started``, ``progress`` at most every second, and ``step_ended``."""
        step = _JsonStep(self, name, total, unit)
        self.event("step_started", name=name, total=total, unit=unit)
        finished = False
        try:
            yield step
            finished = True
        finally:
            seconds = round(step.seconds, 3)
            self.event("step_ended", name=name, done=step.done, unit=unit, seconds=seconds, finished=finished)

    def say(self, text: str) -> None:
        """Event ``message``."""
        self.event("message", text=text)

    def warn(self, text: str) -> None:
        """Event ``warning``."""
        self.event("warning", text=text)

    def metrics(self, values: dict[str, Any]) -> None:
        """Event ``metrics``, for every logged step."""
        self.event("metrics", **values)


def is_terminal(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal that moves its cursor."""
    from rich.console import Console

    return stream.isatty() and not Console(file=stream).is_dumb_terminal


def make_screen(*, quiet: bool, json: bool, stream: TextIO | None = None) -> Screen:
    """The screen for the options given and the place it writes to (stdout for JSON, else stderr).

    Raises:
        UserError: ``quiet`` and ``json`` together.
    """
    if quiet and json:
        raise UserError("--quiet and --json exclude each other", fix="use --json and read only the events you need")
    if json:
        return JsonScreen(stream)
    if quiet:
        return QuietScreen(stream)
    if not is_terminal(stream or sys.stderr):
        return PlainScreen(stream)
    from tunekit.runs.screen_rich import RichScreen

    return RichScreen(stream)


def show_error(error: TunekitError, *, json: bool = False, stream: TextIO | None = None) -> None:
    """Shows an error as one block: title, then what, where and fix of every problem (the first 20 of a long list).

    In JSON mode it is one event ``error`` on stdout with all problems.
    """
    if json:
        problems = [{"what": p.what, "where": p.where, "fix": p.fix} for p in error.problems]
        JsonScreen(stream).event("error", title=error.title, exit_code=error.exit_code, problems=problems)
        return
    place = stream or sys.stderr
    shown, rest = error.problems[:MOST_PROBLEMS], len(error.problems) - MOST_PROBLEMS
    more = f"... and {amount(rest, 'further problems')}" if rest > 0 else ""
    if is_terminal(place):
        from tunekit.runs.screen_rich import print_error

        print_error(place, error.title, shown, more)
    else:
        print(
            "\n".join([f"error: {error.title}", *_plain_problems(shown), *([more] if more else [])]),
            file=place,
            flush=True,
        )


def _plain_problems(problems: tuple[Problem, ...]) -> Iterator[str]:
    for problem in problems:
        yield f"  {problem.what}"
        if problem.where:
            yield f"    at:  {problem.where}"
        if problem.fix:
            yield f"    fix: {problem.fix}"
