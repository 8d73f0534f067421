"""Dialogues as lists of turns: {conversation: [{system?, input, output}]}, or turns by usr/sys or USER/SYSTEM.

The first kind pairs input and output; ``system`` may stand in the first pair only. In the second kind a turn has
``speaker`` and ``utterance``, or ``role`` and ``content``; usr and user are the user, and sys and system are the
dialogue system, that is the assistant (as in CrossWOZ and SGD), in any case of letters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.core.types import Example, Material, Message, Role, RowError
from tunekit.data.columns import required, shown, text_of
from tunekit.data.conversation import checked, need, role_of, turns_of

GIVES: Material = "texts"
PRECEDENCE = 30
FIELDS: Mapping[str, tuple[str, ...]] = {"turns": ("turns", "conversation", "dialogue", "messages")}
REQUIRED = ("turns",)
SPEAKERS: Mapping[str, Role] = {"usr": "user", "user": "user", "sys": "assistant", "system": "assistant"}


def matches(row: Mapping[str, Any]) -> bool:
    """True when one of the columns is a list of pairs, of speaker turns, or of turns by usr and sys."""
    turns = next((row[name] for name in FIELDS["turns"] if name in row), None)
    if not isinstance(turns, list | tuple) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        return False
    if all("input" in turn and "output" in turn for turn in turns):
        return True
    if all("speaker" in turn and "utterance" in turn for turn in turns):
        return True
    roles = [turn.get("role") for turn in turns]
    return "content" in turns[0] and all(isinstance(r, str) and r.lower() in SPEAKERS for r in roles) and "usr" in roles


def to_example(row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
    """The conversation of a row.

    Raises:
        RowError: the turn or column that is wrong, and why.
    """
    names = FIELDS["turns"]
    listed = turns_of(required(row, columns, "turns", names), f"column '{shown(row, columns, 'turns', names)}'")
    if listed and ("input" in listed[0] or "output" in listed[0]):
        return Example(messages=_pairs(listed))
    return Example(messages=checked([_spoken(turn, f"turn {i}") for i, turn in enumerate(listed, start=1)]))


def _pairs(listed: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    turns: list[Message] = []
    for i, pair in enumerate(listed, start=1):
        where = f"turn {i}"
        system = pair.get("system")
        if system:
            if i > 1:
                raise RowError(f"{where}: a system prompt inside the conversation; it may stand in turn 1 only")
            turns.append(Message("system", text_of(system, f"{where}: system")))
        for key, role in (("input", "user"), ("output", "assistant")):
            text = text_of(need(pair, key, where), f"{where}: {key}")
            if not text.strip():
                raise RowError(f"{where}: {key} is empty")
            turns.append(Message("user" if role == "user" else "assistant", text))
    return checked(turns)


def _spoken(turn: Mapping[str, Any], where: str) -> Message:
    by_speaker = "speaker" in turn
    name = need(turn, "speaker" if by_speaker else "role", where)
    role = role_of(name.lower() if isinstance(name, str) else name, SPEAKERS, where)
    key = "utterance" if by_speaker else "content"
    return Message(role, text_of(need(turn, key, where), f"{where}: {key}"))
