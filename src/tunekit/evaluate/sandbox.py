"""Runs programs that a model wrote, each in a process of its own with little to harm and little time to do it.

A guard against accidents, not against an attacker. Each program gets: an interpreter without the environment and
without installed packages, a folder of its own that is deleted afterwards, bounds on processor time, memory, file size
and open files, no new processes (the kernel does not hold root to this), and a wall time after which it is killed
together with what it started. Where the kernel allows it, the program has no network, sees no other process, and
nothing that it started outlives it. It can read, and write in place, what its user can.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
_TOLD = 2000  # characters of the program's last words that are read

# Runs before the program, in its process: nothing of tunekit is imported there. Namespaces are asked for first with
# one of users, which needs no rights, then without, for root in a container that allows no namespace of users. A
# namespace of processes holds the children of the one that asks, so the program is a child; it dies with its parent.
_START = """
import ctypes, os, resource, signal, sys
seconds, memory, files, program = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
USERS, PROCESSES, NETWORK, MESSAGES = 0x10000000, 0x20000000, 0x40000000, 0x08000000
PARENT_DEATH, NO_NEW_RIGHTS, NO_CORE = 1, 38, 4
kernel = ctypes.CDLL(None, use_errno=True)
apart = any(kernel.unshare(kind | PROCESSES | NETWORK | MESSAGES) == 0 for kind in (USERS, 0))
child = os.fork() if apart else 0
if child:
    os.close(int(sys.argv[5]))
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(ended if ended >= 0 else 128 - ended)
kernel.prctl(PARENT_DEATH, signal.SIGKILL, 0, 0, 0)
kernel.prctl(NO_NEW_RIGHTS, 1, 0, 0, 0)
for kind, bound in (
    (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, files),
    (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_NPROC, 0),
):
    resource.setrlimit(kind, (bound, bound))
os.execv(sys.executable, [sys.executable, "-I", "-S", "-B", "-X", "utf8", program])
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one program."""

    seconds: float = 10.0
    memory_mib: int = 1024
    file_mib: int = 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a program: whether it came to its end, and if not, why."""

    passed: bool
    why: str = ""


def run_all(programs: Sequence[str], limits: Limits, processes: int) -> list[Outcome]:
    """Runs programs, ``processes`` of them at a time; outcomes in their order."""
    with ThreadPoolExecutor(processes) as pool:
        return list(pool.map(lambda program: run_one(program, limits), programs))


def run_one(program: str, limits: Limits) -> Outcome:
    """Runs one program of Python.

    It has passed when its last line was reached and it ended without an error: a program that leaves early, by
    ``exit()`` or ``os._exit(0)``, has not. The line writes a word that the program cannot guess, to a pipe.
    """
    word = secrets.token_hex(16)
    heard, told = os.pipe()
    try:
        with tempfile.TemporaryDirectory(prefix="tunekit-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            last = f"\n__import__('os').write({told}, b'{word}')\n"
            text = program.encode("utf-8", errors="surrogatepass")
            (folder / "program.py").write_bytes(text + last.encode())
            try:
                why = _run(folder, limits, told)
            finally:
                os.close(told)
            os.set_blocking(heard, False)  # what outlived the program may hold the pipe open
            reached = _said(heard) == word
    finally:
        os.close(heard)
    if why:
        return Outcome(False, why)
    return Outcome(reached, "" if reached else "ended before its last line")


def _run(folder: Path, limits: Limits, told: int) -> str:
    """Runs ``program.py`` of a folder; why it failed, or nothing."""
    numbers = [max(1, round(limits.seconds)), limits.memory_mib * MIB, limits.file_mib * MIB]
    command = [sys.executable, "-I", "-S", "-c", _START, *map(str, numbers), str(folder / "program.py"), str(told)]
    with (folder / "errors").open("wb") as errors:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=(told,),
            start_new_session=True,
        )
        try:
            code = process.wait(limits.seconds)
        except subprocess.TimeoutExpired:
            return f"stopped after {limits.seconds:g} s"
        finally:
            _kill(process)
    if code == 0:
        return ""
    lines = (folder / "errors").read_bytes()[-_TOLD:].decode("utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), f"ended with code {code}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and its whole group, and waits for it."""
    with suppress(ProcessLookupError):  # all of the group have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _said(pipe: int) -> str:
    try:
        return os.read(pipe, 1 << 16).decode("ascii", errors="replace")
    except BlockingIOError:
        return ""
