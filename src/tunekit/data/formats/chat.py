"""Conversations as OpenAI writes them: {messages: [{role, content, tool_calls?}], system?, tools?}.

Content is text, null beside tool calls, or a list of parts ({type: text | input_text | output_text | reasoning |
tool_call, text or value}); the texts of a turn are joined without a separator. Roles are system (or developer), user,
assistant, tool (or function). ``train: true/false`` or ``weight: 0/1`` on a turn overrides the recipe's `loss_on`.
A row that ends with a user turn is refused, not shortened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.core.types import Example, Material
from tunekit.data.columns import field, required, shown
from tunekit.data.conversation import with_system
from tunekit.data.messages import ROLES, messages_of
from tunekit.data.toolcalls import tools_of

GIVES: Material = "texts"
PRECEDENCE = 10
FIELDS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "system": ("system",),
    "tools": ("tools", "functions"),
}
REQUIRED = ("messages",)


def matches(row: Mapping[str, Any]) -> bool:
    """True for a list of turns with ``role``, of which at least one has an OpenAI name."""
    turns = row.get("messages")
    if not isinstance(turns, list | tuple) or not turns:
        return False
    roles = [turn.get("role") if isinstance(turn, Mapping) else None for turn in turns]
    return any(role in ROLES for role in roles if isinstance(role, str))


def to_example(row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
    """The conversation of a row.

    Raises:
        RowError: the turn or column that is wrong, and why.
    """
    names, tools = FIELDS["messages"], FIELDS["tools"]
    turns = messages_of(required(row, columns, "messages", names), f"column '{shown(row, columns, 'messages', names)}'")
    offered = tools_of(field(row, columns, "tools", tools), f"column '{shown(row, columns, 'tools', tools)}'")
    return Example(messages=with_system(turns, row, columns, FIELDS["system"]), tools=offered)
