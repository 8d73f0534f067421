"""Messages in the OpenAI form, for the formats that hold lists of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.core.types import Message, Role, RowError
from tunekit.data.columns import filled_text, required, shown, text_of
from tunekit.data.conversation import need, role_of, turns_of
from tunekit.data.readers.record import kind
from tunekit.data.toolcalls import call_of, calls_of

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
TEXT_PARTS = ("text", "input_text", "output_text")


def messages_of(value: Any, where: str) -> list[Message]:
    """A list of OpenAI messages as ours; `tunekit.data.conversation.checked` is the caller's.

    Raises:
        RowError: the turn's number and what is wrong with it.
    """
    return [_message(turn, f"turn {i}") for i, turn in enumerate(turns_of(value, where), start=1)]


def turns_in(
    row: Mapping[str, Any], columns: Mapping[str, str], name: str, defaults: Sequence[str], role: Role
) -> list[Message]:
    """A field that is a list of messages, or a text that is one turn of ``role``.

    Raises:
        RowError: it is missing, null, empty, or a turn of it is wrong.
    """
    value = required(row, columns, name, defaults)
    if isinstance(value, list | tuple):
        return messages_of(value, f"column '{shown(row, columns, name, defaults)}'")
    return [Message(role, filled_text(row, columns, name, defaults))]


def _message(turn: Mapping[str, Any], where: str) -> Message:
    role = role_of(need(turn, "role", where), ROLES, where)
    where = f"{where} ({role})"
    content, reasoning, calls = _content(turn, where)
    calls += calls_of(turn.get("tool_calls"), where)
    if turn.get("function_call") is not None:
        calls += (call_of(turn["function_call"], f"{where}: function_call"),)
    if role != "assistant" and (calls or reasoning is not None):
        raise RowError(f"{where}: only an assistant turn may hold {'tool calls' if calls else 'reasoning'}")
    if content is None and not calls:
        raise RowError(f"{where}: content is null")
    return Message(
        role=role,
        content=content or "",
        reasoning=reasoning,
        tool_calls=calls,
        name=_optional(turn, "name", where),
        tool_call_id=_optional(turn, "tool_call_id", where),
        train=_train(turn, where),
    )


def _optional(turn: Mapping[str, Any], key: str, where: str) -> str | None:
    value = turn.get(key)
    return None if value is None else text_of(value, f"{where}: {key}")


def _content(turn: Mapping[str, Any], where: str) -> tuple[str | None, str | None, tuple[Mapping[str, Any], ...]]:
    """The text, the reasoning and the calls that the content holds; None where there is none."""
    given = [key for key in ("reasoning_content", "reasoning", "thinking") if turn.get(key) is not None]
    reasoning = _optional(turn, given[0], where) if given else None
    value = turn.get("content") if "tool_calls" in turn or "function_call" in turn else need(turn, "content", where)
    if value is None or isinstance(value, str):
        return value, reasoning, ()
    if not isinstance(value, list | tuple):
        raise RowError(f"{where}: text or a list of parts expected as content, found {kind(value)}")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Mapping[str, Any]] = []
    for i, part in enumerate(value, start=1):
        what, body = _part(part, f"{where}: part {i}")
        if what == "tool_call":
            calls.append(call_of(body, f"{where}: part {i}"))
        else:
            (thoughts if what == "reasoning" else texts).append(text_of(body, f"{where}: part {i}"))
    if thoughts and reasoning is not None:
        raise RowError(f"{where}: reasoning both in '{given[0]}' and in a part")
    text = "".join(texts) if texts else None
    return text, "".join(thoughts) if thoughts else reasoning, tuple(calls)


def _part(part: Any, where: str) -> tuple[str, Any]:
    if not isinstance(part, Mapping):
        raise RowError(f"{where}: an object expected, found {kind(part)}")
    what = need(part, "type", where)
    if what not in (*TEXT_PARTS, "reasoning", "tool_call"):
        raise RowError(f"{where}: type '{what}' cannot be trained on; known: text, reasoning, tool_call")
    value = part.get("value")
    return what, value if value is not None else need(part, "tool_call" if what == "tool_call" else "text", where)


def _train(turn: Mapping[str, Any], where: str) -> bool | None:
    """``train: true/false`` or ``weight: 0/1``."""
    train, weight = turn.get("train"), turn.get("weight")
    if train is not None and not isinstance(train, bool):
        raise RowError(f"{where}: train must be true or false, found {kind(train)}")
    if weight is None:
        return train
    if isinstance(weight, bool) or weight not in (0, 1):
        raise RowError(f"{where}: weight must be 0 or 1, found {kind(weight)}")
    if train is not None and train != bool(weight):
        raise RowError(f"{where}: train and weight contradict each other")
    return bool(weight)
