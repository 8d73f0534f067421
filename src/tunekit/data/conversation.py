"""What a conversation must look like to be trained on; every format hands its turns to `checked`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tunekit.core.registry import nearest
from tunekit.core.types import Message, Role, RowError
from tunekit.data.columns import optional_text
from tunekit.data.readers.record import kind


def checked(turns: Sequence[Message], hidden: int = 0, opened: bool = False) -> tuple[Message, ...]:
    """The turns themselves, when they are a conversation: system turns, then user and assistant (with tools) in turn.

    Nothing is repaired: a conversation that ends with a user turn, for example, is refused rather than shortened,
    because only its owner knows whether the answer is missing or the turn is superfluous.

    Args:
        turns: the conversation.
        hidden: how many of the first turns are not in the user's own list (a system prompt from another column);
            messages count the turns of that list, from 1.
        opened: an assistant turn may be the first, as where a service greets its callers.

    Raises:
        RowError: the first thing that is wrong, with the turn's number.
    """
    if not turns:
        raise RowError("the conversation has no turns")
    if all(turn.role != "assistant" for turn in turns):
        raise RowError("there is no assistant turn: nothing to learn")
    _check_turns(turns, hidden, opened)
    if turns[-1].role == "user":
        raise RowError("the conversation ends with a user turn: there is no answer to learn from")
    if turns[-1].role == "tool":
        raise RowError("the conversation ends with a tool result: the assistant's answer to it is missing")
    if all(turn.train is False for turn in turns if turn.role == "assistant"):
        raise RowError("every assistant turn is marked as not to be trained: nothing to learn")
    return tuple(turns)


def unanswered(turns: Sequence[Message], hidden: int = 0) -> tuple[Message, ...]:
    """The turns themselves, when they are a conversation that waits for the assistant's answer.

    Raises:
        RowError: as `checked`; or there is nothing to be answered at the end.
    """
    if not turns:
        raise RowError("the prompt has no turns")
    _check_turns(turns, hidden, opened=False)
    if turns[-1].role not in ("user", "tool"):
        raise RowError(f"the prompt ends with {turns[-1].role}, not with a user turn: there is nothing to answer")
    return tuple(turns)


def _check_turns(turns: Sequence[Message], hidden: int, opened: bool) -> None:
    begun, calls = False, 0
    for i, turn in enumerate(turns):
        where = f"turn {i + 1 - hidden}"
        before = turns[i - 1] if i else None
        _check_order(turn, before, begun, opened, where)
        _check_content(turn, where)
        begun = begun or turn.role != "system"
        if turn.role == "tool":
            calls -= 1
            _check_tool(turn, turns[:i], calls, where)
        else:
            calls = len(turn.tool_calls)


def _check_order(turn: Message, before: Message | None, begun: bool, opened: bool, where: str) -> None:
    if turn.role == "system":
        if begun:
            raise RowError(f"{where}: a system turn inside the conversation (chat templates place it differently)")
    elif turn.role == "tool":
        if before is None or not (before.role == "tool" or before.tool_calls):
            raise RowError(f"{where}: a tool result without a tool call before it")
    elif not begun and turn.role != "user" and not (opened and turn.role == "assistant"):
        raise RowError(f"{where}: the conversation begins with {turn.role}, not with user")
    elif before is not None and before.role == turn.role:
        raise RowError(f"{where}: two {turn.role} turns in a row")


def _check_content(turn: Message, where: str) -> None:
    if turn.role == "assistant" and not turn.tool_calls and not turn.content.strip():
        raise RowError(f"{where}: the assistant's answer is empty")
    if turn.role == "user" and not turn.content.strip():
        raise RowError(f"{where}: the user's text is empty")


def _check_tool(turn: Message, before: Sequence[Message], left: int, where: str) -> None:
    if left < 0:
        raise RowError(f"{where}: more tool results than tool calls")
    asked = next(message for message in reversed(before) if message.role != "tool")
    ids = [call["id"] for call in asked.tool_calls if "id" in call]
    if turn.tool_call_id is not None and len(ids) == len(asked.tool_calls) and turn.tool_call_id not in ids:
        raise RowError(f"{where}: the tool result answers call '{turn.tool_call_id}', which was not made before it")


def with_system(
    turns: Sequence[Message],
    row: Mapping[str, Any],
    columns: Mapping[str, str],
    names: Sequence[str],
    check: Callable[[Sequence[Message], int], tuple[Message, ...]] = checked,
) -> tuple[Message, ...]:
    """The conversation, checked, with the row's system prompt in front when it stands in a column of its own.

    A missing, null or empty column means no system prompt.

    Raises:
        RowError: as ``check``; or there is a system prompt in both places.
    """
    system = optional_text(row, columns, "system", names)
    if not system:
        return check(turns, 0)
    if turns and turns[0].role == "system":
        raise RowError("a system prompt both in a column and as turn 1: keep one")
    return check([Message("system", system), *turns], 1)


def turns_of(value: Any, where: str) -> list[Mapping[str, Any]]:
    """A list of objects, the turns of one conversation.

    Raises:
        RowError: it is no list, or an element is no object.
    """
    if not isinstance(value, list | tuple):
        raise RowError(f"{where}: a list of turns expected, found {kind(value)}")
    for i, turn in enumerate(value, start=1):
        if not isinstance(turn, Mapping):
            raise RowError(f"turn {i}: an object expected, found {kind(turn)}")
    return list(value)


def role_of(value: Any, roles: Mapping[str, Role], where: str) -> Role:
    """Our role for a data set's role name.

    Raises:
        RowError: it is unknown; the nearest known name is given.
    """
    if not isinstance(value, str):
        raise RowError(f"{where}: a role expected, found {kind(value)}")
    if value not in roles:
        raise RowError(f"{where}: unknown role '{value}'; {_hint(value, roles)}")
    return roles[value]


def _hint(name: str, known: Iterable[str]) -> str:
    close = nearest(name.lower().strip(), known)
    return f"did you mean '{close}'?" if close else f"known: {', '.join(known)}"


def need(turn: Mapping[str, Any], key: str, where: str) -> Any:
    """A key that a turn must have.

    Raises:
        RowError: it has not; the nearest key is given.
    """
    if key not in turn:
        raise RowError(f"{where} has no '{key}'; {_hint(key, turn) if turn else 'it is empty'}")
    return turn[key]
