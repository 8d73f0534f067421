"""N processes on this machine: each runs the same session on the saved plan and the data prepared before.

One that dies, stops or hangs ends them all, and is named; none outlives the launcher.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO

from tunekit.core import errors
from tunekit.core.errors import MachineError, Problem, Stopped, TunekitError
from tunekit.core.files import write_json
from tunekit.core.startup import waiting
from tunekit.plan.plan import Plan
from tunekit.train.heartbeat import Watch, Watchdog
from tunekit.train.session import Outcome
from tunekit.train.signals import StopRequest

OUTCOME, ERROR, STOPPED, RANKS = ".outcome.json", ".error.json", ".stopped.json", ".ranks"
_TICK = 0.2  # seconds between looks at the stop request
_GRACE = 5.0  # seconds between SIGTERM and SIGKILL once the run has failed
_LINGER = 30.0  # seconds for the others once a rank has ended as asked: checkpoints are finished together
_ENDED_AS_ASKED = frozenset({128 + signal.SIGTERM, 128 + signal.SIGINT})


def launch(
    plan: Plan,
    plan_path: Path,
    data_folder: Path,
    options: list[str],
    stop: StopRequest,
    checkpoint: Path | None = None,
    *,
    worker: str = "tunekit.train.worker",
) -> Outcome:
    """Runs the plan on ``plan.processes`` ranks of this machine and waits for them.

    Args:
        plan: the resolved plan.
        plan_path: where it is saved.
        data_folder: the prepared data.
        options: ``--quiet`` or ``--json`` for the ranks' screen; without, what they write to stderr goes to log.txt.
        stop: is handed on to the ranks as SIGTERM.
        checkpoint: to go on from.
        worker: the module that is a rank.

    Raises:
        TunekitError: what the first failing rank raised.
        MachineError: a rank died without a word, was stopped, or all of them hang.
        Stopped: the ranks ended because they were asked to.
    """
    folder = Path(plan.run_dir)
    _clear(folder)
    command = [sys.executable, "-P", "-m", worker, str(plan_path), str(data_folder), "--launcher", str(os.getpid())]
    command += [*options, *(["--checkpoint", str(checkpoint)] if checkpoint else [])]
    ranks = _Ranks(folder, plan.recipe.guards.watchdog)
    with stop.deferred():
        try:
            asked = _run(ranks, plan, command, stop, into_log=not options)
            if (folder / OUTCOME).exists():
                return Outcome(**_read(folder / OUTCOME))
            if asked is not None:
                told = _read(folder / STOPPED)["told"] if (folder / STOPPED).exists() else ""
                raise Stopped(asked, told)
            raise MachineError(
                "rank 0 ended and left no outcome", where=str(ranks.log), fix="look at the end of the log"
            )
        finally:
            ranks.kill()
            _clear(folder)


def _clear(folder: Path) -> None:
    """Removes what an earlier attempt, or this one, left for the launcher."""
    for name in (OUTCOME, ERROR, STOPPED):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / RANKS, ignore_errors=True)


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _environment(plan: Plan, rank: int, port: int) -> dict[str, str]:
    """What torch's env:// meeting place and accelerate read; another launcher's own variables would mislead them.

    gloo looks up the host's name to find a network card, which fails where the name is wrong, and listens there.
    """
    mine = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    ours: dict[str, object] = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": plan.processes,
        "LOCAL_WORLD_SIZE": plan.processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": plan.threads,
    }
    return {"GLOO_SOCKET_IFNAME": "lo"} | waiting(mine) | mine | {name: str(value) for name, value in ours.items()}


@dataclass(eq=False)
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    watch: Watch
    code: int | None = None  # as subprocess counts: -9 is SIGKILL
    died: float = 0.0


class _Ranks:
    """The processes of a run, in the order of their ranks, and those that ended in the order of their ends."""

    def __init__(self, folder: Path, watchdog: float) -> None:
        self.folder, self.log = folder, folder / "log.txt"
        self.all: list[_Rank] = []
        self.ended: list[_Rank] = []
        self.watchdog = Watchdog(folder / RANKS, self.log, watchdog)
        self._deaths: SimpleQueue[tuple[_Rank, int]] = SimpleQueue()
        (folder / RANKS).mkdir(parents=True)

    @property
    def living(self) -> list[_Rank]:
        """Those that have not ended."""
        return [rank for rank in self.all if rank.code is None]

    def start(self, number: int, command: list[str], environment: dict[str, str], stderr: BinaryIO | None) -> None:
        """Starts a rank in a session of its own: Ctrl-C reaches the launcher only, and its group holds its children."""
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
        rank = _Rank(number, process, self.watchdog.watch(number, process.pid))
        self.all.append(rank)

        def report() -> None:
            # not reaped: until the group is killed, nobody else may be given its number
            result = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            assert result is not None
            code = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
            self._deaths.put((rank, code))

        threading.Thread(target=report, name=f"rank {number}", daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Returns after the next end of a rank, or after so many seconds."""
        with suppress(Empty):
            rank, code = self._deaths.get(timeout=seconds)
            rank.code, rank.died = code, self.watchdog.now
            self.ended.append(rank)

    def send(self, signum: int) -> None:
        """Sends a signal to every living rank, not to its children."""
        for rank in self.living:
            os.kill(rank.process.pid, signum)

    def end(self) -> _Rank | None:
        """SIGTERM, a grace, SIGKILL: a rank that waits in a collective for a dead one runs no Python handler.

        Returns one that somebody else killed, if the kernel only now came to its end.
        """
        self.send(signal.SIGTERM)
        self._until(lambda: not self.living, _GRACE)
        killed = next((rank for rank in self.ended if rank.code == -signal.SIGKILL), None)
        self.kill()
        return killed

    def kill(self) -> None:
        """Kills every rank and its children, at once. One that the kernel cannot end just now is left to it."""
        for rank in self.all:
            if rank.process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(rank.process.pid, signal.SIGKILL)
        self._until(lambda: not self.living, _GRACE)
        for rank in self.ended:
            rank.process.wait()

    def _until(self, reached: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not reached() and time.monotonic() < end:
            self.wait(_TICK / 2)

    def look(self) -> None:
        """Looks at the heartbeats.

        Raises:
            MachineError: a rank gives no sign of life, or none gets on with its work; all are dead then.
        """
        error = self.watchdog.look([rank.watch for rank in self.living])
        if error is not None:
            self.kill()
            raise error


def _run(ranks: _Ranks, plan: Plan, command: list[str], stop: StopRequest, *, into_log: bool) -> int | None:
    """Starts all ranks and returns what `_wait` does."""
    with ranks.log.open("ab") as log, socket.socket() as held:
        # kept until the end, so that nobody else is given the port before rank 0 listens on it
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        for rank in range(plan.processes):
            environment = _environment(plan, rank, held.getsockname()[1])
            ranks.start(rank, command, environment, log if into_log and rank else None)
        return _wait(ranks, stop)


def _wait(ranks: _Ranks, stop: StopRequest) -> int | None:
    """Returns when all ranks have ended as they should: None, or the signal that they were asked with.

    Raises:
        TunekitError: one did not, or hangs; all are dead then.
    """
    asked: int | None = None
    while ranks.living:
        ranks.wait(_TICK)
        if asked is None:
            # a rank that was asked by somebody else has told the others, who end with it
            themselves = [rank.code - 128 for rank in ranks.ended if rank.code in _ENDED_AS_ASKED]
            asked = stop.signum or next(iter(themselves), None)
            if asked is not None:
                ranks.send(signal.SIGTERM)
        failed, left = _failed(ranks.ended, asked is not None), (ranks.folder / ERROR).exists()
        if left or failed:
            # an error counts before its process ends: a rank that fails may hang in its own exit
            killed = ranks.end()
            raise read_error(ranks.folder / ERROR) if left or failed is None else _death(killed or failed, ranks)
        if asked is not None and ranks.ended and ranks.watchdog.now - ranks.ended[-1].died > _LINGER:
            ranks.end()
        ranks.look()
    return asked


def _failed(ended: list[_Rank], asked: bool) -> _Rank | None:
    """The first that ended as it should not; exceptions after one that ended as asked are only its absence."""
    absent = False
    for rank in ended:
        if asked and rank.code in _ENDED_AS_ASKED | {-signal.SIGTERM}:
            absent = True
        elif rank.code and not (absent and rank.code > 0):
            return rank
    return None


def _death(first: _Rank, ranks: _Ranks) -> TunekitError:
    """What became of the first rank that failed without an error of ours."""
    where, fix = str(ranks.log), "look at the end of the log"
    if first.code and first.code < 0:
        name = {known.value: known.name for known in signal.Signals}.get(-first.code, f"signal {-first.code}")
        if name == "SIGKILL":
            fix = "mostly the machine's memory is full: fewer processes, or a smaller train.micro_batch_size"
        return MachineError(f"rank {first.number} was killed by {name}", where=where, fix=fix)
    told = [(rank, _read(path)) for rank in ranks.all if (path := Path(f"{rank.watch.path}.failed")).exists()]
    if first not in [rank for rank, _ in told]:
        what = f"rank {first.number} ended with code {first.code} and left no error"
        return MachineError(what, where=where, fix=fix)
    # a process may end later than those that its exception took with it
    rank, value = min(told, key=lambda pair: pair[1]["at"])
    kind = MachineError if value["machine"] else TunekitError
    return kind(f"rank {rank.number} failed: {value['error']}", where=where, fix=fix)


def write_error(path: Path, error: TunekitError) -> None:
    """Leaves an error for the launching process; the first one stays."""
    if not path.exists():
        problems = [dataclasses.asdict(problem) for problem in error.problems]
        write_json(path, {"kind": type(error).__name__, "problems": problems})


def read_error(path: Path) -> TunekitError:
    """The error that a rank left."""
    value = _read(path)
    first, *more = (Problem(**problem) for problem in value["problems"])
    kind: type[TunekitError] = getattr(errors, value["kind"])
    return kind(first.what, where=first.where, fix=first.fix, problems=more)
