"""A step in a process of its own: it knows only what lies on the disk, its memory is its own, and it may die alone."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunekit.compress.scratch import scratch
from tunekit.core import startup
from tunekit.core.errors import MachineError, Problem, TunekitError
from tunekit.core.files import write_json

ANSWER, ERROR = "answer.json", "error.json"


def run(module: str, job: Mapping[str, Any], doing: str) -> dict[str, Any]:
    """Calls ``module.work(job)`` in a fresh process.

    Args:
        module: dotted name; its `work` takes the job and gives an answer, both plain values.
        job: plain values.
        doing: what the process does, for its error: ``quantizes``.

    Returns:
        The answer, and ``peak_memory``: bytes that the process held at most.

    Raises:
        TunekitError: what the process raised.
        MachineError: it died without a word, as it does where memory is short.
    """
    with scratch("fresh") as place:
        path = place / "job.json"
        write_json(path, dict(job))
        # -P: a module in the folder that the user works in is none of Python's
        command = [sys.executable, "-P", "-m", "tunekit.compress.fresh", str(os.getpid()), module, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if path.with_name(ERROR).exists():
            raise _error(path.with_name(ERROR))
        if done.returncode or not path.with_name(ANSWER).exists():
            last = (done.stderr.strip().splitlines() or ["no word"])[-1]
            what = f"the process that {doing} ended with code {done.returncode}: {last[:300]}"
            raise MachineError(what, fix="is there memory for the model twice? see `tunekit doctor`")
        answer: dict[str, Any] = json.loads(path.with_name(ANSWER).read_text(encoding="utf-8"))
        return answer


def _error(path: Path) -> TunekitError:
    value = json.loads(path.read_text(encoding="utf-8"))
    first, *more = (Problem(**problem) for problem in value["problems"])
    kind: type[TunekitError] = getattr(importlib.import_module(value["module"]), value["kind"])
    return kind(first.what, where=first.where, fix=first.fix, problems=more)


def main(arguments: list[str]) -> int:
    """Does the job that is named, and leaves the answer, or the error, beside it."""
    startup.begin()
    startup.die_with(int(arguments[0]))
    module, path = importlib.import_module(arguments[1]), Path(arguments[2])
    job = json.loads(path.read_text(encoding="utf-8"))
    from safetensors import SafetensorError

    try:
        answer = module.work(job)
    except TunekitError as error:
        return _leave(path, error)
    except (OSError, MemoryError, SafetensorError) as error:  # a full disk, short memory, files that cannot be read
        told = str(error).strip().splitlines() or ["no word"]
        return _leave(path, MachineError(f"{type(error).__name__}: {told[0]}", fix="see `tunekit doctor`"))
    write_json(path.with_name(ANSWER), answer | {"peak_memory": _peak_memory()})
    return 0


def _peak_memory() -> int:
    """Bytes that this program held at most; ``getrusage`` would tell those of the program that began it, if more."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    (kib,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kib) * 1024


def _leave(path: Path, error: TunekitError) -> int:
    problems = [dataclasses.asdict(problem) for problem in error.problems]
    kind = {"module": type(error).__module__, "kind": type(error).__qualname__}
    write_json(path.with_name(ERROR), kind | {"problems": problems})
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
