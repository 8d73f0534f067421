"""Verbs that write a folder whole or not at all: a signal ends them as Ctrl-C does, and what was half written goes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tunekit.core.errors import Stopped


@contextmanager
def stoppable(told: str = "nothing was written") -> Iterator[None]:
    """SIGTERM raises `Stopped` in the block.

    Args:
        told: what the user is told of it.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped(signum, told)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
