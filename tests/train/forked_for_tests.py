"""Work in a process of its own, where limits may be set and what dies dies alone."""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest

from tunekit.core.errors import TunekitError
from tunekit.train.available import process_bytes

_M_MMAP_THRESHOLD = -3
# Tensors that are freed go back to the system at once: a limit then holds whatever tests ran before.
ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def forked(work, *, file_limit=None, memory=None):
    """What ``work()`` returns, or ``("error", class, exit code, what, where, fix)``; a process that dies is a failure.

    ``file_limit``: bytes of the largest file; ``memory``: bytes of address space beyond those in use now.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with os.fdopen(writer, "wb") as pipe:
            if file_limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
            if memory is not None:
                resource.setrlimit(resource.RLIMIT_AS, (process_bytes("VmSize") + memory, resource.RLIM_INFINITY))
            pickle.dump(_outcome(work), pipe)
            pipe.flush()
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0 and content, f"the process ended with status {os.waitstatus_to_exitcode(status)}"
    return pickle.loads(content)


def _outcome(work):
    try:
        return work()
    except TunekitError as error:
        problem = error.problems[0]
        return "error", type(error).__name__, error.exit_code, problem.what, problem.where, problem.fix
    except BaseException as error:  # noqa: BLE001 (the child must not run on into pytest)
        return "other", type(error).__name__, None, str(error), "", ""


@contextmanager
def small_disk(folder, options="size=2m"):
    """A file system of its own at ``folder``; skips where this user may not mount one."""
    folder.mkdir(exist_ok=True)
    mount = shutil.which("mount")
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if not done or done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip() if done else 'no mount'}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
