"""How long steps tell how far they are. The screen is the command line's; this is the contract, and the silent one."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class Step(Protocol):
    """A running step of known or unknown length."""

    def advance(self, n: int = 1) -> None:
        """``n`` more units (rows, batches, bytes) are done."""

    def note(self, text: str) -> None:
        """Shows a short text beside the bar."""


class Screen(Protocol):
    """Where progress, messages and warnings go."""

    def step(self, name: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Step]:
        """Opens a progress bar named ``name``; closing it leaves one line that says how long it took."""

    def say(self, text: str) -> None:
        """One line for the user."""

    def warn(self, text: str) -> None:
        """One line the user should not miss."""

    def metrics(self, values: dict[str, Any]) -> None:
        """Values of the running training (``step``, ``total_steps``, ``loss``, ``learning_rate``, ...)."""


class _SilentStep:
    def advance(self, n: int = 1) -> None:
        """Nothing is shown."""

    def note(self, text: str) -> None:
        """Nothing is shown."""


class Silent:
    """A screen that shows nothing: for tests, library use and ranks other than 0."""

    def step(self, name: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Step]:
        """A step that shows nothing."""
        return nullcontext(_SilentStep())

    def say(self, text: str) -> None:
        """Shows nothing."""

    def warn(self, text: str) -> None:
        """Shows nothing."""

    def metrics(self, values: dict[str, Any]) -> None:
        """Shows nothing."""
