"""The exit-code tree. Every failure a user can meet is one of these, and is shown as one block without a traceback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: what it is, where it stands (``file:line`` or a row), and what to do about it."""

    what: str
    where: str = ""
    fix: str = ""


class TunekitError(Exception):
    """Base of all errors that tunekit raises on purpose.

    Args:
        what: what is wrong, in one sentence.
        where: ``file:line``, ``file:line:column`` or a row; empty when there is no place.
        fix: what the user can do about it.
        problems: further problems found in the same pass; all are shown together.
    """

    exit_code = 1
    title = "internal error"

    def __init__(self, what: str, *, where: str = "", fix: str = "", problems: Sequence[Problem] = ()) -> None:
        super().__init__(what)
        self.problems: tuple[Problem, ...] = (Problem(what, where, fix), *problems)

    @property
    def fix(self) -> str:
        """What to do about the first problem."""
        return self.problems[0].fix

    def __str__(self) -> str:
        return "\n".join(
            " ".join(part for part in (f"{p.where}:" if p.where else "", p.what) if part) for p in self.problems
        )


class UserError(TunekitError):
    """A wrong recipe, argument or option. Exit code 2."""

    exit_code = 2
    title = "cannot start"


class DataError(TunekitError):
    """The data cannot be trained on as it is. Exit code 3."""

    exit_code = 3
    title = "data refused"


class MachineError(TunekitError):
    """The machine does not allow it: disk, memory, device, network, a missing package. Exit code 4."""

    exit_code = 4
    title = "this machine cannot do it"


class DivergedError(TunekitError):
    """Training produced a loss or gradient that is not finite. Exit code 5."""

    exit_code = 5
    title = "training diverged"


class Stopped(KeyboardInterrupt):
    """Somebody asked the program to end: Ctrl-C (SIGINT) or SIGTERM. Exit code 130 or 143.

    A KeyboardInterrupt, so that no library's ``except Exception`` takes it for a failure.

    Args:
        signum: the signal.
        told: what became of the work so far, for the user; empty when there is nothing to say.
    """

    def __init__(self, signum: int, told: str = "") -> None:
        super().__init__(told)
        self.signum, self.told = signum, told

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells count."""
        return 128 + self.signum


def raise_all(kind: type[TunekitError], problems: Sequence[Problem]) -> None:
    """Raises one error of ``kind`` that carries all ``problems``; does nothing when there are none."""
    if problems:
        first = problems[0]
        raise kind(first.what, where=first.where, fix=first.fix, problems=problems[1:])


def first_line(error: BaseException) -> str:
    """What an error says in its first line; its type, when it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


_NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "alloc_failed",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on a GPU or on the CPU."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in _NO_MEMORY)
    )
