"""A rank's signs of life: a file that a thread touches and that says what the rank did last, and how it is watched."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tunekit.core.errors import MachineError, Problem
from tunekit.core.progress import Screen, Step

_LONGEST = 200  # characters of what a rank says that it does
_STARTING = 60.0  # seconds that a rank may take for its imports, however short the watchdog
_LOOK = 1.0  # seconds between two looks
_ANSWER = 3.0  # seconds in which the ranks write their stacks
_FIRST = "starting"
_GAP = 5.0  # seconds between two looks that count at most
_log = logging.getLogger(__name__)


class Heartbeat:
    """Tells whoever reads ``path`` that this process lives (the file's time) and what it did last (its text).

    Args:
        path: the file; its folder exists.
        every: seconds between two beats.
    """

    def __init__(self, path: Path, every: float = 1.0) -> None:
        self.failure: OSError | None = None
        self._path, self._every = path, every
        self._last = (_FIRST, time.time())
        self._closed, self._wake = False, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def progress(self, what: str) -> None:
        """The main thread got on with its work and is at ``what`` now; the next beat writes it down."""
        first, self._last = self._last[0] == _FIRST, (what, time.time())
        if first:
            self._wake.set()

    def close(self) -> None:
        """No more beats."""
        self._closed = True
        self._wake.set()
        self._thread.join()

    def _beat(self) -> None:
        written: tuple[str, float] | None = None
        while not self._closed:
            self._wake.clear()
            last = self._last
            try:
                if last is written:
                    os.utime(self._path)
                else:
                    what, at = last
                    told = {"pid": os.getpid(), "what": what[:_LONGEST], "at": round(at, 3)}
                    self._path.write_text(json.dumps(told) + "\n", encoding="utf-8")
                    written = last
            except OSError as error:  # a full disk is the business of those who write what matters
                if self.failure is None:
                    _log.warning("the heartbeat of this process cannot be written: %s", error)
                self.failure = error
            self._wake.wait(self._every)


class Beating:
    """A screen through which everything that is shown counts as progress.

    Args:
        screen: shows it.
        heartbeat: is told first.
    """

    def __init__(self, screen: Screen, heartbeat: Heartbeat) -> None:
        self._screen, self._heartbeat = screen, heartbeat

    @contextmanager
    def step(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Step]:
        """The screen's step; its begin and its end count as well."""
        self._heartbeat.progress(name)
        with self._screen.step(name, total, unit) as step:
            yield _BeatingStep(step, name, self._heartbeat)
        self._heartbeat.progress(f"{name}: done")

    def say(self, text: str) -> None:
        """One line for the user."""
        self._heartbeat.progress(text)
        self._screen.say(text)

    def warn(self, text: str) -> None:
        """One line the user should not miss."""
        self._heartbeat.progress(text)
        self._screen.warn(text)

    def metrics(self, values: dict[str, Any]) -> None:
        """Values of the running training."""
        self._heartbeat.progress(f"step {values.get('step', '?')} is logged")
        self._screen.metrics(values)


class _BeatingStep:
    def __init__(self, step: Step, name: str, heartbeat: Heartbeat) -> None:
        self._step, self._name, self._heartbeat = step, name, heartbeat
        self._done = 0

    def advance(self, n: int = 1) -> None:
        self._done += n
        self._heartbeat.progress(f"{self._name}, {self._done} done")
        self._step.advance(n)

    def note(self, text: str) -> None:
        self._heartbeat.progress(self._name)
        self._step.note(text)


class AwakeClock:
    """Seconds in which this process ran. A machine that slept, or Ctrl-Z, must not make the ranks look dead."""

    def __init__(self) -> None:
        self._seconds, self._last = 0.0, time.monotonic()

    def now(self) -> float:
        """Seconds since the clock was made; of a gap between two calls at most five."""
        real = time.monotonic()
        self._seconds += min(real - self._last, _GAP)
        self._last = real
        return self._seconds


class Watch:
    """What the launcher sees of one rank. Only change counts, so that file times and clocks need not agree.

    Args:
        number: the rank.
        pid: its process.
        path: its heartbeat.
        now: when the process was started, on the launcher's clock.
    """

    def __init__(self, number: int, pid: int, path: Path, now: float) -> None:
        self.pid, self.path, self.alive, self.progressed = pid, path, now, now
        self.name = f"rank {number} (process {pid})"
        self.what, self.at = _FIRST, time.time()
        self.begun = False
        self._mtime = 0
        self._text = b""

    @property
    def state(self) -> str:
        """The kernel's word for what the process does, such as ``T (stopped)``; empty when there is none."""
        with suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8").splitlines():
                if line.startswith("State:"):
                    return line.split(maxsplit=1)[1]
        return ""

    @property
    def stopped(self) -> bool:
        """Whether a signal or a debugger holds the process."""
        return self.state[:1] in ("T", "t")

    @property
    def last(self) -> str:
        """What the rank did last, and when."""
        return f"last: {self.what}, at {_clock(self.at)}"

    def look(self, now: float) -> None:
        """Reads the file once more."""
        try:
            mtime, text = self.path.stat().st_mtime_ns, self.path.read_bytes()
        except OSError:
            return
        self.begun = True
        if mtime != self._mtime:
            self._mtime, self.alive = mtime, now
        if text == self._text and text:
            return
        # half a text, or none on a full disk: nobody can tell whether it progressed
        self._text, self.progressed = text, now
        try:
            told = json.loads(text)
            self.what, self.at = str(told["what"]), float(told["at"])
        except (ValueError, KeyError, TypeError):
            self._text = b""

    def silent(self, now: float, limit: float) -> bool:
        """Whether the process gave no sign of life for ``limit`` seconds."""
        return now - self.alive > self._limit(limit)

    def idle(self, now: float, limit: float) -> bool:
        """Whether the work got no further for ``limit`` seconds."""
        return now - self.progressed > self._limit(limit)

    def _limit(self, limit: float) -> float:
        return max(limit, _STARTING) if self.what == _FIRST else limit


class Watchdog:
    """Looks at the heartbeats of all ranks, on a clock that stands still while this process does not run.

    Args:
        folder: where the heartbeats are.
        log: takes the stacks.
        limit: seconds without life or progress.
    """

    def __init__(self, folder: Path, log: Path, limit: float) -> None:
        self.folder, self.log, self.limit = folder, log, limit
        self._clock = AwakeClock()
        self._looked = 0.0

    @property
    def now(self) -> float:
        """Seconds of this watchdog's clock."""
        return self._clock.now()

    def watch(self, number: int, pid: int) -> Watch:
        """Begins with a rank that was just started."""
        return Watch(number, pid, self.folder / f"rank-{number}", self.now)

    def look(self, living: list[Watch]) -> MachineError | None:
        """Looks once a second; an error that names the rank that is silent, or says that all hang.

        Then the stacks of those that can still write them are at the end of the log.
        """
        now = self.now
        if now - self._looked < _LOOK:
            return None
        self._looked = now
        for watch in living:
            watch.look(now)
        try:
            os.utime(self.folder)
        except OSError:  # the folder is at fault, not the ranks
            for watch in living:
                watch.alive = watch.progressed = now
        silent = [watch for watch in living if watch.silent(now, self.limit)]
        if silent:
            named = next((watch for watch in silent if watch.stopped), silent[0])
            error = self._silence(named, now, [watch for watch in living if watch is not named])
        elif living and all(watch.idle(now, self.limit) for watch in living):
            error = MachineError(
                f"no rank has made progress for {self.limit:g} s, though all are alive",
                where=str(self.log),
                fix="the stacks at the end of the log show where each waits; slow steps need a longer guards.watchdog",
                problems=_told(living),
            )
        else:
            return None
        self._dump(living)
        return error

    def _silence(self, named: Watch, now: float, others: list[Watch]) -> MachineError:
        since, state = _clock(time.time() - (now - named.alive)), named.state
        if named.stopped:
            what = f"{named.name} has been stopped (state {state[:1]}) since {since}"
            fix = "somebody sent it SIGSTOP, or traces it"
        else:
            what = f"{named.name} has given no sign of life since {since} (state {state or 'unknown'}); {named.last}"
            fix = "its stacks are at the end of the log, if it could still write them"
        return MachineError(what, where=str(self.log), fix=fix, problems=_told(others))

    def _dump(self, living: list[Watch]) -> None:
        paths = {watch: Path(f"{watch.path}.stacks") for watch in living}
        # one that has not begun would die of the signal; a stopped one cannot answer
        asked = [watch for watch in living if watch.begun and not watch.stopped]
        for watch in asked:
            with suppress(ProcessLookupError):
                os.kill(watch.pid, signal.SIGUSR1)
        sizes, end = [-1], time.monotonic() + _ANSWER
        while time.monotonic() < end:
            before, sizes = sizes, [paths[watch].stat().st_size for watch in asked]
            if before == sizes and all(sizes):
                break
            time.sleep(0.1)
        with self.log.open("ab") as log:
            for watch, path in paths.items():
                text = path.read_bytes() if path.exists() else b""
                none = "" if text else f"none: the process did not answer (state {watch.state})\n"
                log.write(f"\nstacks of {watch.name}, {watch.last}\n{none}".encode() + text)


def _told(watches: list[Watch]) -> list[Problem]:
    return [Problem(watch.last, where=watch.name) for watch in watches]


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))
