"""Questions and answers: {question, answer, context?, system?}; they become one user and one assistant turn.

A context stands before the question, with a blank line between.
One of several gold answers is named by its path: ``columns: {answer: answer.0}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.core.types import Example, Material, Message
from tunekit.data.columns import filled_text, optional_text
from tunekit.data.conversation import with_system

GIVES: Material = "texts"
PRECEDENCE = 70
FIELDS: Mapping[str, tuple[str, ...]] = {
    "question": ("question", "query"),
    "answer": ("answer",),
    "context": ("context", "passage"),
    "system": ("system",),
}
REQUIRED = ("question", "answer")


def matches(row: Mapping[str, Any]) -> bool:
    """True for a question and an answer, but not with choices (the answer means nothing alone) or several answers."""
    choices = any(str(name).startswith(("choice", "option")) for name in row)
    several = isinstance(row.get("answer"), list | tuple)
    return ("question" in row or "query" in row) and "answer" in row and not choices and not several


def to_example(row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
    """The conversation of a row.

    Raises:
        RowError: the column that is wrong, and why.
    """
    question = filled_text(row, columns, "question", FIELDS["question"])
    context = optional_text(row, columns, "context", FIELDS["context"])
    asked = f"{context}\n\n{question}" if context.strip() else question
    turns = [Message("user", asked), Message("assistant", filled_text(row, columns, "answer", FIELDS["answer"]))]
    return Example(messages=with_system(turns, row, columns, FIELDS["system"]))
