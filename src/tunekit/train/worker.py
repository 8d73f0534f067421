"""The entry of one rank: `python -m tunekit.train.worker PLAN DATA [options]`, started by `train.launch`."""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import os
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

from tunekit.core import startup
from tunekit.core.errors import Stopped, TunekitError
from tunekit.core.files import write_json
from tunekit.core.progress import Silent
from tunekit.data.prepare import Prepared
from tunekit.plan.plan import Plan
from tunekit.runs.layout import RunFolder
from tunekit.runs.screen import make_screen
from tunekit.train.heartbeat import Beating, Heartbeat
from tunekit.train.launch import ERROR, OUTCOME, RANKS, STOPPED, write_error
from tunekit.train.logs import library_logs_to
from tunekit.train.session import Session
from tunekit.train.signals import stop_signals

_LEAVING = 5.0  # seconds for the interpreter's end after a failure


def main(arguments: list[str]) -> int:
    """Runs this rank's session. Rank 0 leaves the outcome, or what it tells when stopped; a failing rank its error."""
    startup.begin()
    asked = _parser().parse_args(arguments)
    if asked.launcher is not None:
        startup.die_with(asked.launcher)
    rank = int(os.environ.get("RANK", "0"))
    plan = Plan.load(asked.plan)
    folder = Path(plan.run_dir)
    mine = folder / RANKS / f"rank-{rank}"
    # open until the process ends: a signal may come that late
    stacks = os.open(f"{mine}.stacks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    try:
        with closing(Heartbeat(mine)) as heartbeat:
            _run(asked, rank, plan, heartbeat)
    except TunekitError as error:
        write_error(folder / ERROR, error)
        _leave_in_time()
        return error.exit_code
    except Stopped as stopped:
        if rank == 0:
            write_json(folder / STOPPED, {"told": stopped.told})
        return stopped.exit_code
    except BaseException as error:
        _leave_in_time()
        machine = isinstance(error, OSError | MemoryError)
        write_json(Path(f"{mine}.failed"), {"at": time.time(), "error": _words(error), "machine": machine})
        with RunFolder(folder).log.open("ab") as log:
            os.dup2(log.fileno(), 2)  # the traceback goes there: on the screen the launcher tells of it
        raise
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tunekit.train.worker", description="one rank of a run")
    parser.add_argument("plan", type=Path, help="plan.json")
    parser.add_argument("data", type=Path, help="the folder of prepared data")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="go on from this checkpoint")
    parser.add_argument("--launcher", type=int, metavar="PID", help="the process that this rank must not outlive")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser


def _run(asked: argparse.Namespace, rank: int, plan: Plan, heartbeat: Heartbeat) -> None:
    folder = RunFolder(Path(plan.run_dir))
    shown = make_screen(quiet=asked.quiet, json=asked.json) if rank == 0 else Silent()
    with stop_signals() as request, library_logs_to(folder.log):
        startup.load_to_stay("transformers.trainer")
        session = Session(
            plan,
            Prepared(asked.data),
            Beating(shown, heartbeat),
            stop=request,
            checkpoint=asked.checkpoint,
            pulse=heartbeat.progress,
        )
        outcome = session.run()
        if rank == 0:
            write_json(folder.path / OUTCOME, dataclasses.asdict(outcome))


def _leave_in_time() -> None:
    """After a failure the interpreter's end may wait for ever for a collective that the other ranks never join."""
    faulthandler.dump_traceback_later(_LEAVING, exit=True)


def _words(error: BaseException) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:300].removesuffix(": ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
