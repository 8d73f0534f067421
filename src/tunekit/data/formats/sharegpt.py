"""Conversations in the ShareGPT form: {conversations: [{from, value}], system?, tools?}.

Roles are human or user, gpt, assistant, bot or model, system, function_call (an assistant turn whose value is the call
as JSON, or a list of calls), and observation, function_response or tool (a tool's result). ``tools`` is a list or JSON
text. An empty ``system`` column means no system prompt. A row that ends with a human turn is refused, not shortened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.core.types import Example, Material
from tunekit.data.columns import field, required, shown
from tunekit.data.conversation import with_system
from tunekit.data.speech import spoken
from tunekit.data.toolcalls import tools_of

GIVES: Material = "texts"
PRECEDENCE = 20
FIELDS: Mapping[str, tuple[str, ...]] = {
    "conversations": ("conversations",),
    "system": ("system",),
    "tools": ("tools",),
}
REQUIRED = ("conversations",)


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
    turns = spoken(value, f"column '{shown(row, columns, 'conversations', names)}'")
    where = f"column '{shown(row, columns, 'tools', FIELDS['tools'])}'"
    tools = tools_of(field(row, columns, "tools", FIELDS["tools"]), where)
    return Example(messages=with_system(turns, row, columns, FIELDS["system"]), tools=tools)
