"""Instructions in the Alpaca form: {instruction, input?, output, system?, history?: [[question, answer], ...]}.

An input that is not empty follows the instruction after a blank line. Nested rows are reached with dotted paths, for
example ``columns: {input: instances.0.input, output: instances.0.output}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.core.types import Example, Material, Message, RowError
from tunekit.data.columns import field, filled_text, optional_text, text_of
from tunekit.data.conversation import with_system
from tunekit.data.readers.record import kind

GIVES: Material = "texts"
PRECEDENCE = 60
FIELDS: Mapping[str, tuple[str, ...]] = {
    "instruction": ("instruction",),
    "input": ("input", "context"),
    "output": ("output", "response"),
    "system": ("system",),
    "history": ("history",),
}
REQUIRED = ("instruction", "output")


def matches(row: Mapping[str, Any]) -> bool:
    """True when there are an instruction and an output (or response)."""
    return "instruction" in row and ("output" in row or "response" in row)


def to_example(row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
    """The conversation of a row.

    Raises:
        RowError: the column that is wrong, and why.
    """
    instruction = filled_text(row, columns, "instruction", FIELDS["instruction"])
    given = optional_text(row, columns, "input", FIELDS["input"])
    asked = f"{instruction}\n\n{given}" if given.strip() else instruction
    turns = _history(field(row, columns, "history", FIELDS["history"]))
    turns += [Message("user", asked), Message("assistant", filled_text(row, columns, "output", FIELDS["output"]))]
    return Example(messages=with_system(turns, row, columns, FIELDS["system"]))


def _history(value: Any) -> list[Message]:
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise RowError(f"history: a list of [question, answer] expected, found {kind(value)}")
    turns: list[Message] = []
    for i, pair in enumerate(value, start=1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            found = f"{len(pair)} items" if isinstance(pair, list | tuple) else kind(pair)
            raise RowError(f"history {i}: [question, answer] expected, found {found}")
        for text, name in zip(pair, ("question", "answer")):
            if not text_of(text, f"history {i}: {name}").strip():
                raise RowError(f"history {i}: the {name} is empty")
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    return turns
