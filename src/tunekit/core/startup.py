"""What a process sets for itself before it loads heavy libraries: how threads wait, how often garbage is sought."""

from __future__ import annotations

import ctypes
import gc
import importlib
import logging
import os
import signal
import sys
from collections.abc import Mapping

_POLICY, _ASLEEP = "OMP_WAIT_POLICY", "PASSIVE"
_TURNS = "GOMP_SPINCOUNT"
"""GNU's number of turns that a thread spins before it sleeps; stronger than the policy."""
_TALKS_OF_ITSELF = "torch.utils._pytree"
"""Warns of old calls that torchao makes when it is imported, which transformers does wherever it is installed."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_OFTEN = gc.get_threshold()
_SELDOM = 50_000  # new objects between two looks for garbage


def begin() -> None:
    """To be called before torch is imported: its OpenMP library reads how threads wait once, when it is loaded.

    Libraries make half a million objects that stay. Looking through them again and again while they are loaded is a
    tenth of the time from the command to the first step, so garbage is looked for less often, until `load_to_stay`.
    """
    os.environ.update(waiting(os.environ))
    logging.getLogger(_TALKS_OF_ITSELF).setLevel(logging.ERROR)
    gc.set_threshold(_SELDOM, *_OFTEN[1:])


def die_with(parent: int) -> None:
    """Asks the kernel to kill this process when its parent ends, however it ends.

    Raises:
        SystemExit: it has ended already.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the process that this one works for is gone")


def load_to_stay(library: str) -> None:
    """Imports a library; from here on garbage is looked for as by default again, but not among what is there.

    A process that did not `begin` is somebody else's: its garbage is left to it.

    Args:
        library: the last heavy one; nothing large that training will give up may be in memory yet.
    """
    importlib.import_module(library)
    if gc.get_threshold()[0] == _SELDOM:
        gc.freeze()
        gc.set_threshold(*_OFTEN)


def waiting(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to an environment so that idle threads sleep; nothing where it says already how they wait.

    By default they spin for some time between two parallel regions. A spinning thread holds the core that another
    process needs, and the other threads wait for the one whose core was taken.
    """
    return {} if _POLICY in environment or _TURNS in environment else {_POLICY: _ASLEEP}


def how_threads_wait(environment: Mapping[str, str] | None = None) -> tuple[bool, str]:
    """Whether idle threads sleep, and the setting that says so, as ``NAME=value``; an empty one when nothing does."""
    given = os.environ if environment is None else environment
    name = next((name for name in (_TURNS, _POLICY) if name in given), None)
    if name is None:
        return False, ""
    return given[name].strip().upper() in (_ASLEEP, "0"), f"{name}={given[name]}"
