"""Plain text to be continued, without roles: {text} or {content}; every token is trained.

A list of texts (the paragraphs of a poem) is joined with line feeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.core.types import Example, Material, RowError
from tunekit.data.columns import filled_text, required, shown, text_of

GIVES: Material = "texts"
PRECEDENCE = 80
FIELDS: Mapping[str, tuple[str, ...]] = {"text": ("text", "content")}
REQUIRED = ("text",)
PARTS_OF_CHATS = ("role", "parent_id", "parent_message_id")


def matches(row: Mapping[str, Any]) -> bool:
    """True when there is a text that is not one message of a conversation spread over several rows."""
    value = row.get("text", row.get("content"))
    return isinstance(value, str | list | tuple) and not any(name in row for name in PARTS_OF_CHATS)


def to_example(row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
    """The text of a row, exactly as it is.

    Raises:
        RowError: it is missing, empty or no text.
    """
    value = required(row, columns, "text", FIELDS["text"])
    if not isinstance(value, list | tuple):
        return Example(text=filled_text(row, columns, "text", FIELDS["text"]))
    where = f"column '{shown(row, columns, 'text', FIELDS['text'])}'"
    text = "\n".join(text_of(part, f"{where}: part {i}") for i, part in enumerate(value, start=1))
    if not text.strip():
        raise RowError(f"{where} is empty")
    return Example(text=text)
