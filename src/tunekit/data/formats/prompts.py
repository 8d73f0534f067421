"""Prompts that the model answers itself: {prompt or question or messages, reference?, system?, tools?, other columns}.

A prompt is a text (one user turn) or a list of messages that ends with a user turn or a tool's result. The right
answer, where there is one, stands in ``reference``, ``answer``, ``solution`` or ``ground_truth``, as a text or a
number. All columns of the row are kept for rewards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.core.types import Example, Material, Question, RowError
from tunekit.data.columns import field, shown
from tunekit.data.conversation import unanswered, with_system
from tunekit.data.messages import turns_in
from tunekit.data.readers.record import kind
from tunekit.data.toolcalls import tools_in

GIVES: Material = "prompts"
PRECEDENCE = 5
FIELDS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "messages"),
    "reference": ("reference", "answer", "solution", "ground_truth"),
    "system": ("system",),
    "tools": ("tools",),
}
REQUIRED = ("prompt",)
ANSWERED = ("completion", "response", "chosen", "rejected", "answers", "responses", "completions")
PARTS_OF_PROMPTS = ("context", "passage")
CHOICES = ("choice", "option")


def matches(row: Mapping[str, Any]) -> bool:
    """True for a prompt that nothing in the row answers but the right answer, and that no other column belongs to."""
    if any(name in row for name in (*ANSWERED, *PARTS_OF_PROMPTS)) or any(
        str(name).startswith(CHOICES) for name in row
    ):
        return False
    if any(isinstance(row.get(name), list | tuple | Mapping) for name in FIELDS["reference"]):
        return False
    prompt = next((row[name] for name in FIELDS["prompt"] if name in row), None)
    if isinstance(prompt, str):
        return "messages" not in row
    if not isinstance(prompt, list | tuple) or not prompt:
        return False
    turns = [turn.get("role") if isinstance(turn, Mapping) else None for turn in prompt]
    return None not in turns and turns[-1] in ("user", "tool", "function")


def to_example(row: Mapping[str, Any], columns: Mapping[str, str]) -> Question:
    """The prompt of a row.

    Raises:
        RowError: the column or turn that is wrong, and why.
    """
    turns = turns_in(row, columns, "prompt", FIELDS["prompt"], "user")
    messages = with_system(turns, row, columns, FIELDS["system"], unanswered)
    value = field(row, columns, "reference", FIELDS["reference"])
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        where = f"column '{shown(row, columns, 'reference', FIELDS['reference'])}'"
        raise RowError(f"{where}: a text or a number expected, found {kind(value)}; name another as `reference`")
    example = Example(messages, tools_in(row, columns, FIELDS["tools"]))
    return Question(example, "" if value is None else str(value), dict(row))
