"""N processes: torchrun starts the same session once a rank, on the saved plan and the data prepared before."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tunekit.core import errors
from tunekit.core.errors import MachineError, Problem, TunekitError
from tunekit.core.files import write_json
from tunekit.plan.plan import Plan
from tunekit.train.session import Outcome

OUTCOME, ERROR = ".outcome.json", ".error.json"


def launch(plan: Plan, plan_path: Path, data_folder: Path, screen_options: list[str]) -> Outcome:
    """Runs the plan on ``plan.processes`` ranks of this machine and waits for them.

    Raises:
        TunekitError: what the first failing rank raised; MachineError when a rank died without a word.
    """
    folder = Path(plan.run_dir)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={plan.processes}",
        "-m", "tunekit.train.worker", str(plan_path), str(data_folder), *screen_options,
    ]  # fmt: skip
    with (folder / "log.txt").open("ab") as log:
        # torchrun sets OMP_NUM_THREADS=1 when it is not set; the plan has shared out the cores already
        environment = os.environ | {"OMP_NUM_THREADS": str(plan.threads)}
        done = subprocess.run(command, env=environment, stderr=None if screen_options else log, check=False)
    failure = folder / ERROR
    if failure.exists():
        raise read_error(failure)
    if done.returncode or not (folder / OUTCOME).exists():
        raise MachineError(
            f"a process of the run ended with code {done.returncode} and left no error",
            where=str(folder / "log.txt"),
            fix="look at the end of the log; exit -9 is mostly the machine's memory",
        )
    value = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
    (folder / OUTCOME).unlink()
    return Outcome(**value)


def write_error(path: Path, error: TunekitError) -> None:
    """Leaves an error for the launching process; the first one stays."""
    if not path.exists():
        problems = [dataclasses.asdict(problem) for problem in error.problems]
        write_json(path, {"kind": type(error).__name__, "problems": problems})


def read_error(path: Path) -> TunekitError:
    """The error that a rank left."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    first, *more = (Problem(**problem) for problem in value["problems"])
    kind: type[TunekitError] = getattr(errors, value["kind"])
    return kind(first.what, where=first.where, fix=first.fix, problems=more)
