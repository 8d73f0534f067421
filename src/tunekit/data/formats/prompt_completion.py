"""A prompt and its completion: {prompt, completion or response, system?, tools?}.

Both are texts or lists of OpenAI messages; texts become one user and one assistant turn. Only the completion is
trained: assistant turns inside a prompt are marked as not to be trained, unless they say otherwise themselves
(``train`` or ``weight``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tunekit.core.types import Example, Material
from tunekit.data.columns import field, shown
from tunekit.data.conversation import with_system
from tunekit.data.messages import turns_in
from tunekit.data.toolcalls import tools_of

GIVES: Material = "texts"
PRECEDENCE = 50
FIELDS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt",),
    "completion": ("completion", "response"),
    "system": ("system",),
    "tools": ("tools",),
}
REQUIRED = ("prompt", "completion")


def matches(row: Mapping[str, Any]) -> bool:
    """True when both columns hold text or a list."""
    completion = row.get("completion", row.get("response"))
    return isinstance(row.get("prompt"), str | list | tuple) and isinstance(completion, str | list | tuple)


def to_example(row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
    """The conversation of a row.

    Raises:
        RowError: the column or turn that is wrong, and why.
    """
    asked = [
        replace(turn, train=False) if turn.role == "assistant" and turn.train is None else turn
        for turn in turns_in(row, columns, "prompt", FIELDS["prompt"], "user")
    ]
    answered = turns_in(row, columns, "completion", FIELDS["completion"], "assistant")
    where = f"column '{shown(row, columns, 'tools', FIELDS['tools'])}'"
    tools = tools_of(field(row, columns, "tools", FIELDS["tools"]), where)
    return Example(messages=with_system([*asked, *answered], row, columns, FIELDS["system"]), tools=tools)
