"""Two whole dialogues as texts: {chosen, rejected}, each with Human: and Assistant: before its paragraphs (HH-RLHF).

Only a marker at the beginning of a paragraph (of the text, or behind a blank line) begins a turn; the same words
inside a turn are text. The white space around a turn is no part of it. The dialogues must be alike, turn by turn, up
to the last answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tunekit.core.types import Material, Message, Pair, Role, RowError
from tunekit.data.columns import text_of
from tunekit.data.conversation import checked
from tunekit.data.pairing import MARGINS, both, margin_in, pair_of

GIVES: Material = "pairs"
PRECEDENCE = 14
FIELDS: Mapping[str, tuple[str, ...]] = {"chosen": ("chosen",), "rejected": ("rejected",), **MARGINS}
REQUIRED = ("chosen", "rejected")
ROLES: Mapping[str, Role] = {"Human": "user", "Assistant": "assistant"}
_MARKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def matches(row: Mapping[str, Any]) -> bool:
    """True when both texts begin with a marker and hold an answer."""
    texts = [row.get("chosen"), row.get("rejected")]
    return not {"prompt", "conversations"} & set(row) and all(
        isinstance(text, str) and _MARKER.match(text) is not None and "\n\nAssistant:" in text for text in texts
    )


def to_example(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[Pair, ...]:
    """The pair of a row.

    Raises:
        RowError: the column, turn or answer that is wrong, and why.
    """
    chosen, rejected = (_turns(text_of(value, where), where) for value, where in both(row, columns, FIELDS))
    return pair_of(chosen, rejected, checked, (), margin_in(row, columns))


def _turns(text: str, where: str) -> list[Message]:
    before, *parts = _MARKER.split(text)
    if before.strip() or not parts:
        raise RowError(f"{where} does not begin with 'Human:'")
    return [Message(ROLES[name], said.strip()) for name, said in zip(parts[::2], parts[1::2], strict=True)]
