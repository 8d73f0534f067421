"""What the formats of preference data share: two answers to one prompt, and by how much one of them is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunekit.core.types import Example, Message, Pair, RowError
from tunekit.data.columns import field, required, shown
from tunekit.data.messages import messages_of
from tunekit.data.readers.record import kind

MARGINS: Mapping[str, tuple[str, ...]] = {
    "margin": ("margin",),
    "score_chosen": ("score_chosen", "chosen_score"),
    "score_rejected": ("score_rejected", "rejected_score"),
}
"""Fields that say by how much the chosen answer is better."""

Tools = tuple[Mapping[str, Any], ...]
Complete = Callable[[Sequence[Message]], tuple[Message, ...]]


def pair_of(
    chosen: Sequence[Message],
    rejected: Sequence[Message],
    complete: Complete,
    tools: Tools = (),
    margin: float | None = None,
) -> tuple[Pair, ...]:
    """The one pair of a row.

    Args:
        chosen: the whole conversation with the better answer.
        rejected: that with the worse one.
        complete: checks a conversation, and puts the row's system prompt before it.
        tools: offered in both.
        margin: how much better the chosen answer is.

    Raises:
        RowError: an answer is empty, or one of the conversations is none; it is said which.
    """
    good = answered(chosen, complete, "the chosen answer", "chosen: ")
    bad = answered(rejected, complete, "the rejected answer", "rejected: ")
    return (Pair(Example(good, tools), Example(bad, tools), margin),)


def answered(turns: Sequence[Message], complete: Complete, name: str, where: str = "") -> tuple[Message, ...]:
    """A whole conversation that ends with an answer.

    Raises:
        RowError: the answer, called ``name``, is empty; or as ``complete``, with ``where`` before it.
    """
    last = turns[-1] if turns else None
    if last is not None and last.role == "assistant" and not last.content.strip() and not last.tool_calls:
        raise RowError(f"{name} is empty")
    try:
        return complete(turns)
    except RowError as error:
        raise RowError(f"{where}{error}") from None


def conversation_with(prompt: Sequence[Message], value: Any, where: str) -> list[Message]:
    """A whole conversation: the prompt, and what answers it.

    Args:
        prompt: the turns before the answer; none when the answer brings them along.
        value: the answer as text, as one message, or as a list of messages that may begin with the prompt once more.
        where: the answer's column.

    Raises:
        RowError: it is something else, or a turn of it is wrong.
    """
    if isinstance(value, str):
        return [*prompt, Message("assistant", value)]
    listed = [value] if isinstance(value, Mapping) else value
    if not isinstance(listed, list | tuple):
        raise RowError(f"{where}: text, a message or a list of messages expected, found {kind(value)}")
    try:
        turns = messages_of(listed, where)
    except RowError as error:
        raise RowError(f"{where}: {error}" if str(error).startswith("turn ") else str(error)) from None
    system, asked = _parted(prompt)
    own, said = _parted(turns)
    repeated = bool(asked) and _alike(said[: len(asked)], asked) and (not own or not system or _alike(own, system))
    return [*(own or system), *said] if repeated else [*prompt, *turns]


def _parted(turns: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    first = next((at for at, turn in enumerate(turns) if turn.role != "system"), len(turns))
    return list(turns[:first]), list(turns[first:])


def _alike(turns: Sequence[Message], others: Sequence[Message]) -> bool:
    return [(turn.role, turn.content) for turn in turns] == [(turn.role, turn.content) for turn in others]


def margin_in(row: Mapping[str, Any], columns: Mapping[str, str]) -> float | None:
    """By how much the chosen answer is better: a margin, or the difference of two scores; None where none is given.

    Raises:
        RowError: no number, only one of the scores, or the rejected answer is the better one.
    """
    margin = _number_in(row, columns, "margin")
    if margin is None:
        chosen, rejected = (_number_in(row, columns, name) for name in ("score_chosen", "score_rejected"))
        if (chosen is None) != (rejected is None):
            raise RowError("only one of the two answers has a score")
        margin = None if chosen is None or rejected is None else chosen - rejected
    if margin is not None and margin < 0:
        raise RowError(f"the chosen answer is worse than the rejected one, by {-margin:g}")
    return margin


def _number_in(row: Mapping[str, Any], columns: Mapping[str, str], name: str) -> float | None:
    value = field(row, columns, name, MARGINS[name])
    return None if value is None else number_of(value, f"column '{shown(row, columns, name, MARGINS[name])}'")


def number_of(value: Any, where: str) -> float:
    """A finite number, or the number that a text says (every csv field is text).

    Raises:
        RowError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise RowError(f"{where}: a number expected, found {kind(value)}")
    try:
        number = float(value)
    except ValueError:
        raise RowError(f"{where}: a number expected, found text") from None
    if not math.isfinite(number):
        raise RowError(f"{where}: a finite number expected, found {number}")
    return number


def both(
    row: Mapping[str, Any], columns: Mapping[str, str], fields: Mapping[str, Sequence[str]]
) -> list[tuple[Any, str]]:
    """The chosen and the rejected answer as they stand in the row, each with its column as shown to people.

    Raises:
        RowError: one of them is missing or null.
    """
    return [
        (required(row, columns, name, fields[name]), f"column '{shown(row, columns, name, fields[name])}'")
        for name in ("chosen", "rejected")
    ]
