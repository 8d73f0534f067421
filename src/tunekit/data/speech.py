"""Turns in the ShareGPT form, ``{from, value}``, for the formats that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.core.types import Message, Role, RowError
from tunekit.data.columns import text_of
from tunekit.data.conversation import need, role_of, turns_of
from tunekit.data.toolcalls import call_of, calls_of, decoded

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


def spoken(value: Any, where: str) -> list[Message]:
    """A list of ShareGPT turns as ours; `tunekit.data.conversation.checked` is the caller's.

    Raises:
        RowError: the turn's number and what is wrong with it.
    """
    return [said(turn, f"turn {i}") for i, turn in enumerate(turns_of(value, where), start=1)]


def said(turn: Mapping[str, Any], where: str) -> Message:
    """One ShareGPT turn.

    Raises:
        RowError: what is wrong with it.
    """
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
