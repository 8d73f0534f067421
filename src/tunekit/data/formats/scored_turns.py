"""A dialogue and its next turn with a reward of 0 or 1: {context, generation, reward}, JSON inside texts (Taskmaster).

``context`` is a list of turns {role, text or api or response}, ``generation`` the agent's turn that was judged. Roles
are user, agent (the assistant), and api (the result of a call). The agent may speak first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.core.types import Example, Judged, Material, Message, Role, RowError
from tunekit.data.columns import required, shown, text_of
from tunekit.data.conversation import checked, need, role_of, turns_of
from tunekit.data.pairing import answered, number_of
from tunekit.data.readers.record import kind
from tunekit.data.toolcalls import call_of, decoded

GIVES: Material = "judged"
PRECEDENCE = 9
FIELDS: Mapping[str, tuple[str, ...]] = {
    "context": ("context",),
    "generation": ("generation",),
    "reward": ("reward",),
}
REQUIRED = ("context", "generation", "reward")
ROLES: Mapping[str, Role] = {"user": "user", "agent": "assistant", "api": "tool"}


def matches(row: Mapping[str, Any]) -> bool:
    """True for a context, a generation (texts or values) and a number as reward."""
    reward = row.get("reward")
    number = isinstance(reward, int | float) and not isinstance(reward, bool)
    return number and all(isinstance(row.get(name), str | list | tuple | Mapping) for name in ("context", "generation"))


def to_example(row: Mapping[str, Any], columns: Mapping[str, str]) -> Judged:
    """The dialogue of a row, and the verdict on its last turn.

    Raises:
        RowError: the column or turn that is wrong, and why.
    """
    before, asked, last, said = (part for name in ("context", "generation") for part in _decoded(row, columns, name))
    turns = [_turn(turn, f"turn {i}") for i, turn in enumerate(turns_of(before, asked), start=1)]
    if not isinstance(last, Mapping):
        raise RowError(f"{said}: an object expected, found {kind(last)}")
    answer = _turn(last, said)
    if answer.role != "assistant":
        raise RowError(f"{said}: the agent's turn expected, found one of role {last['role']}")
    where = f"column '{shown(row, columns, 'reward', FIELDS['reward'])}'"
    reward = number_of(required(row, columns, "reward", FIELDS["reward"]), where)
    if reward not in (0, 1):
        raise RowError(f"{where}: 0 or 1 expected, found {reward:g}")

    def complete(given: Sequence[Message]) -> tuple[Message, ...]:
        return checked(given, opened=True)

    return Judged(Example(answered([*turns, answer], complete, "the judged answer")), reward == 1)


def _decoded(row: Mapping[str, Any], columns: Mapping[str, str], name: str) -> tuple[Any, str]:
    where = f"column '{shown(row, columns, name, FIELDS[name])}'"
    return decoded(required(row, columns, name, FIELDS[name]), where), where


def _turn(turn: Mapping[str, Any], where: str) -> Message:
    role = role_of(need(turn, "role", where), ROLES, where)
    if role == "tool":
        return Message(role, json.dumps(need(turn, "response", where), ensure_ascii=False))
    if role == "assistant" and turn.get("api") is not None:
        called = turn["api"]
        if not isinstance(called, Mapping) or not called:
            raise RowError(f"{where}: api: an object {{name: arguments}} expected, found {kind(called)}")
        calls = tuple(call_of({"name": name, "arguments": given}, where) for name, given in called.items())
        return Message(role, text_of(turn.get("text") or "", f"{where}: text"), tool_calls=calls)
    return Message(role, text_of(need(turn, "text", where), f"{where}: text"))
