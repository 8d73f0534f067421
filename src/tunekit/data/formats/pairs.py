"""A prompt with a better and a worse answer: {prompt?, chosen, rejected, margin?, system?, tools?}.

The prompt is a text (one user turn) or a list of messages. An answer is a text, one message, or a list of messages,
which may begin with the prompt once more; without a ``prompt`` both are whole conversations. ``margin``, or
``score_chosen`` and ``score_rejected``, say by how much the chosen answer is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.core.types import Material, Message, Pair, RowError
from tunekit.data.columns import field
from tunekit.data.conversation import with_system
from tunekit.data.messages import turns_in
from tunekit.data.pairing import MARGINS, both, conversation_with, margin_in, pair_of
from tunekit.data.toolcalls import tools_in

GIVES: Material = "pairs"
PRECEDENCE = 18
FIELDS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "instruction"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "system": ("system",),
    "tools": ("tools",),
    **MARGINS,
}
REQUIRED = ("chosen", "rejected")


def matches(row: Mapping[str, Any]) -> bool:
    """True for two answers with a prompt, or for two conversations as lists of messages."""
    answers = [row.get("chosen"), row.get("rejected")]
    if any(isinstance(row.get(name), str | list | tuple) for name in FIELDS["prompt"]):
        return all(isinstance(answer, str) or _turns(answer) for answer in answers)
    return "conversations" not in row and all(isinstance(a, list | tuple) and _turns(a) for a in answers)


def _turns(value: Any) -> bool:
    turns = [value] if isinstance(value, Mapping) else value
    return (
        isinstance(turns, list | tuple) and bool(turns) and all(isinstance(t, Mapping) and "role" in t for t in turns)
    )


def to_example(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[Pair, ...]:
    """The pair of a row.

    Raises:
        RowError: the column, turn or answer that is wrong, and why.
    """
    prompt: list[Message] = []
    if field(row, columns, "prompt", FIELDS["prompt"]) is not None:
        prompt = turns_in(row, columns, "prompt", FIELDS["prompt"], "user")
    answers = both(row, columns, FIELDS)
    bare = next((where for value, where in answers if isinstance(value, str)), None)
    if bare is not None and not prompt:
        raise RowError(f"{bare} is a text, and there is no prompt that it answers")

    def complete(turns: Sequence[Message]) -> tuple[Message, ...]:
        return with_system(turns, row, columns, FIELDS["system"])

    chosen, rejected = (conversation_with(prompt, value, where) for value, where in answers)
    tools = tools_in(row, columns, FIELDS["tools"])
    return pair_of(chosen, rejected, complete, tools, margin_in(row, columns))
