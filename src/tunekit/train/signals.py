"""SIGTERM and SIGINT: at once where there is nothing to save, after a checkpoint where there is."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tunekit.core.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether somebody asked the program to end; ``signum`` is the signal, or None."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._deferred = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal is only noted: the block looks at ``signum`` where it can end in good order."""
        if self.signum is not None:
            raise Stopped(self.signum)
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def ask(self, signum: int) -> None:
        """Notes the first signal; raises Stopped outside of `deferred`."""
        if self.signum is None:
            self.signum = signum
        if not self._deferred:
            raise Stopped(self.signum)


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Catches SIGTERM and SIGINT while the block runs.

    The second SIGINT has the system's own effect, at once, wherever the program is. Outside of the main thread Python
    cannot catch signals: there the request stays empty.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        request.ask(signum)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
