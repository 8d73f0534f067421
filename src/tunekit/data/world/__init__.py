"""A small closed world in English and Chinese, made from seeds: the demo's data, split by combination."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

from tunekit.data.world import parts, preferences, talk
from tunekit.data.world.dice import Dice, Key, is_held_out

Split = Literal["train", "held_out"]

_MAKERS: dict[str, tuple[Callable[[Dice, bool], parts.KeyedRow], int, int]] = {
    # part: maker of one row, rows in train, rows in held_out
    "text": (parts.text_row, 60_000, 300),
    "instructions": (parts.instruction_row, 6000, 400),
    "chats": (talk.chat_row, 1500, 150),
    "smalltalk": (talk.smalltalk_row, 1500, 100),
    "preferences": (preferences.preference_row, 1500, 150),
    "tasks": (parts.task_row, 2000, 200),
    "labels": (parts.label_row, 1500, 200),
    "pairs": (parts.pair_row, 3000, 300),
    "passages": (parts.passage_row, 1500, 150),
}

PARTS: tuple[str, ...] = tuple(_MAKERS)
"""The names of the parts."""

__all__ = ["PARTS", "Key", "Split", "is_held_out", "keyed_rows", "rows"]


def keyed_rows(part: str, split: Split, count: int | None = None) -> Iterator[tuple[tuple[Key, ...], dict[str, Any]]]:
    """The rows of a part, each with its combinations: all held out, or none.

    Args:
        part: one of ``PARTS``.
        split: "train" or "held_out".
        count: how many rows; None stands for the part's own size. A larger count continues the same sequence.

    Raises:
        ValueError: there is no such part, or the part has fewer different rows than ``count``.
    """
    if part not in _MAKERS:
        raise ValueError(f"the demo world has no part {part!r}; it has {', '.join(PARTS)}")
    make, train_size, held_out_size = _MAKERS[part]
    held_out = split == "held_out"
    wanted = count if count is not None else held_out_size if held_out else train_size
    dice = Dice(f"tunekit world/{part}/{split}")
    seen: set[str] = set()
    repeats = 0
    while len(seen) < wanted:
        keys, row = make(dice, held_out)
        shown = json.dumps(row, ensure_ascii=False)
        if shown in seen:
            repeats += 1
            if repeats > 20 * wanted + 1000:
                raise ValueError(f"the part {part!r} has no {wanted} different rows in {split}")
            continue
        seen.add(shown)
        yield keys, row


def rows(part: str, split: Split, count: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a part, the same on every machine; see ``keyed_rows``."""
    for _, row in keyed_rows(part, split, count):
        yield row
