"""Conversations in the ShareGPT form: {conversations: [{from, value}], system?, tools?}.

Roles are human or user, gpt, assistant, bot or model, system, function_call (an assistant turn whose value is the call
as JSON, or a list of calls), and observation, function_response or tool (a tool's result). ``tools`` is a list or JSON
text. An empty ``system`` column means no system prompt. A row that ends with a human turn is refused, not shortened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.core.types import Example, Message, Role, RowError
from tunekit.data.columns import field, required, shown, text_of
from tunekit.data.conversation import need, role_of, turns_of, with_system
from tunekit.data.toolcalls import call_of, calls_of, decoded, tools_of

PRECEDENCE = 20
FIELDS: Mapping[str, tuple[str, ...]] = {
    "conversations": ("conversations",),
    "system": ("system",),
    "tools": ("tools",),
}
REQUIRED = ("conversations",)
ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}


def matches(row: Mapping[str, Any]) -> bool:
    """True for a list of turns with ``from`` and ``value``."""
    turns = row.get("conversations")
    return (
        isinstance(turns, list | tuple)
        and bool(turns)
        and all(isinstance(turn, Mapping) and "from" in turn and "value" in turn for turn in turns)
    )


def to_example(row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
    """The conversation of a row.

    Raises:
        RowError: the turn or column that is wrong, and why.
    """
    names = FIELDS["conversations"]
    value = required(row, columns, "conversations", names)
    listed = turns_of(value, f"column '{shown(row, columns, 'conversations', names)}'")
    turns = [_turn(turn, f"turn {i}") for i, turn in enumerate(listed, start=1)]
    where = f"column '{shown(row, columns, 'tools', FIELDS['tools'])}'"
    tools = tools_of(field(row, columns, "tools", FIELDS["tools"]), where)
    return Example(messages=with_system(turns, row, columns, FIELDS["system"]), tools=tools)


def _turn(turn: Mapping[str, Any], where: str) -> Message:
    name = need(turn, "from", where)
    role = role_of(name, ROLES, where)
    where = f"{where} ({name})"
    value = need(turn, "value", where)
    if name == "function_call":
        called = decoded(value, where)
        calls = calls_of(called, where) if isinstance(called, list) else (call_of(called, where),)
        if not calls:
            raise RowError(f"{where}: there is no call in it")
        return Message(role, "", tool_calls=calls)
    return Message(role, text_of(value, where))
