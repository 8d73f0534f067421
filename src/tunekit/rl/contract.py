"""What rewards are given: a model's own answer to a prompt of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunekit.core.types import Message


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer that a model gave.

    Args:
        prompt: the turns before it, as shown to people.
        messages: the turns before it.
        text: the answer, without control tokens.
        tokens: its length, the end token included.
        ended: by an end token, not by its length.
        reference: the right answer; empty where the data has none.
        columns: the row's own values.
        where: ``file:line`` of the row.
    """

    prompt: str
    messages: tuple[Message, ...]
    text: str
    tokens: int
    ended: bool
    reference: str
    columns: Mapping[str, Any]
    where: str
