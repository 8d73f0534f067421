"""Two last turns of a ShareGPT conversation: {conversations: [{from, value}], chosen: {from, value}, rejected: ...}.

``chosen`` and ``rejected`` are one turn, a list with one turn, or a text. ``system``, ``tools``, ``margin`` and the
two scores are as in `pairs`; the roles are those of `sharegpt`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.core.types import Material, Message, Pair, RowError
from tunekit.data.columns import required, shown
from tunekit.data.conversation import with_system
from tunekit.data.pairing import MARGINS, both, margin_in, pair_of
from tunekit.data.readers.record import kind
from tunekit.data.speech import said, spoken
from tunekit.data.toolcalls import tools_in

GIVES: Material = "pairs"
PRECEDENCE = 12
FIELDS: Mapping[str, tuple[str, ...]] = {
    "conversations": ("conversations",),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "system": ("system",),
    "tools": ("tools",),
    **MARGINS,
}
REQUIRED = ("conversations", "chosen", "rejected")


def matches(row: Mapping[str, Any]) -> bool:
    """True for a list of turns with ``from`` and ``value`` beside a chosen and a rejected answer."""
    turns = row.get("conversations")
    if not isinstance(turns, list | tuple) or not turns or "chosen" not in row or "rejected" not in row:
        return False
    return all(isinstance(turn, Mapping) and "from" in turn for turn in turns)


def to_example(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[Pair, ...]:
    """The pair of a row.

    Raises:
        RowError: the column, turn or answer that is wrong, and why.
    """
    names = FIELDS["conversations"]
    value = required(row, columns, "conversations", names)
    prompt = spoken(value, f"column '{shown(row, columns, 'conversations', names)}'")

    def complete(turns: Sequence[Message]) -> tuple[Message, ...]:
        return with_system(turns, row, columns, FIELDS["system"])

    chosen, rejected = ([*prompt, _answer(given, where)] for given, where in both(row, columns, FIELDS))
    tools = tools_in(row, columns, FIELDS["tools"])
    return pair_of(chosen, rejected, complete, tools, margin_in(row, columns))


def _answer(value: Any, where: str) -> Message:
    if isinstance(value, str):
        return Message("assistant", value)
    turn = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    if not isinstance(turn, Mapping):
        raise RowError(f"{where}: one turn or a text expected, found {kind(turn)}")
    return said(turn, where)
