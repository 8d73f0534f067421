"""Work that training need not wait for, one piece at a time: flushing, hashing and renaming what has been written."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Finisher:
    """Runs one piece of work beside the training; what goes wrong in it is raised where the training asks next."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "finisher")
        self._work: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begins with ``work``, after the piece before has ended well."""
        self.wait()
        self._work = self._pool.submit(work)

    def look(self) -> None:
        """Raises what the work has failed with, if it has; does not wait."""
        if self._work is not None and self._work.done():
            self.wait()

    def wait(self) -> None:
        """Returns when the work has ended; raises what it failed with, once."""
        work, self._work = self._work, None
        if work is not None:
            work.result()
