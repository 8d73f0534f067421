"""Message trees as Open Assistant writes them: {prompt: {text, role, replies: [...]}}; the best path is taken.

One example a tree. At each message the reply with the lowest ``rank`` is taken, or the first in the file where none is
ranked; deleted messages are passed over. The path ends with its last assistant message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.core.types import Example, Material, Message, Role, RowError
from tunekit.data.columns import required, shown, text_of
from tunekit.data.conversation import checked, need, role_of, turns_of
from tunekit.data.readers.record import kind

GIVES: Material = "texts"
PRECEDENCE = 40
FIELDS: Mapping[str, tuple[str, ...]] = {"prompt": ("prompt",)}
REQUIRED = ("prompt",)
ROLES: Mapping[str, Role] = {"prompter": "user", "user": "user", "assistant": "assistant", "system": "system"}


def matches(row: Mapping[str, Any]) -> bool:
    """True when ``prompt`` is a message with replies."""
    prompt = row.get("prompt")
    return isinstance(prompt, Mapping) and "text" in prompt and "replies" in prompt


def to_example(row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
    """The best path of a tree.

    Raises:
        RowError: the message (by its depth, from 1) that is wrong, and why.
    """
    where = f"column '{shown(row, columns, 'prompt', FIELDS['prompt'])}'"
    node = required(row, columns, "prompt", FIELDS["prompt"])
    if not isinstance(node, Mapping):
        raise RowError(f"{where}: a message with replies expected, found {kind(node)}")
    path: list[Message] = []
    current: Mapping[str, Any] | None = node
    while current is not None:
        where = f"turn {len(path) + 1}"
        role = role_of(need(current, "role", where), ROLES, where)
        path.append(Message(role, text_of(need(current, "text", where), f"{where}: text")))
        current = _best(current, where)
    answered = max((i for i, turn in enumerate(path, start=1) if turn.role == "assistant"), default=len(path))
    return Example(messages=checked(path[:answered]))


def _best(node: Mapping[str, Any], where: str) -> Mapping[str, Any] | None:
    replies = [r for r in turns_of(node.get("replies") or [], f"{where}: replies") if r.get("deleted") is not True]
    ranked = [reply for reply in replies if reply.get("rank") is not None]
    for reply in ranked:
        if isinstance(reply["rank"], bool) or not isinstance(reply["rank"], int | float):
            raise RowError(f"{where}: the rank of a reply is {kind(reply['rank'])}, not a number")
    return min(ranked, key=lambda reply: float(reply["rank"])) if ranked else next(iter(replies), None)
