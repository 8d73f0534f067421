"""Seeded drawing that is the same on every machine, and the rule that holds combinations out of every train split."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

Thing = TypeVar("Thing")

Key = tuple[str, ...]
"""A combination of atoms that is either trained on or held out, such as ("own", "Anna", "cup", "red")."""

HELD_OUT_PER_MILLE = 100


@lru_cache(maxsize=1 << 18)
def is_held_out(*combination: str) -> bool:
    """Whether a combination belongs to the held-out tenth; it then appears in no train split, in no phrasing."""
    digest = hashlib.sha256("\x1f".join(combination).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") % 1000 < HELD_OUT_PER_MILLE


class Dice:
    """Random choices built on ``random.Random.random`` alone.

    Python keeps that one sequence for a given seed across versions; it gives no such promise for ``choice``,
    ``sample`` or ``shuffle``.
    """

    def __init__(self, seed: str) -> None:
        """Starts the sequence that belongs to ``seed``."""
        self._random = random.Random(seed)

    def between(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both possible."""
        return low + int(self._random.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random.random() < probability

    def pick(self, things: Sequence[Thing]) -> Thing:
        """One of ``things``."""
        return things[self.between(0, len(things) - 1)]

    def some(self, things: Sequence[Thing], count: int) -> list[Thing]:
        """``count`` different positions of ``things``, in random order."""
        rest = list(things)
        return [rest.pop(self.between(0, len(rest) - 1)) for _ in range(count)]

    def shuffled(self, things: Sequence[Thing]) -> list[Thing]:
        """``things`` in random order."""
        return self.some(things, len(things))


def draw_on_side(held_out: bool, make: Callable[[], Thing], key: Callable[[Thing], Key]) -> Thing:
    """Draws with ``make`` until the combination of what was drawn lies on the wanted side of the split."""
    while True:
        thing = make()
        if is_held_out(*key(thing)) == held_out:
            return thing
