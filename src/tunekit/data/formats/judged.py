"""Answers that were found good or bad: {messages, label} or {prompt, completion or response, label}.

``label`` is true or false, or 1 or 0, or one of the words of `VERDICTS`, in any case. It judges the last answer;
``system`` and ``tools`` may be columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.core.types import Example, Judged, Material, Message, RowError
from tunekit.data.columns import field, required, shown
from tunekit.data.conversation import with_system
from tunekit.data.messages import turns_in
from tunekit.data.pairing import answered
from tunekit.data.readers.record import kind
from tunekit.data.toolcalls import tools_in

GIVES: Material = "judged"
PRECEDENCE = 8
FIELDS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt": ("prompt",),
    "completion": ("completion", "response"),
    "label": ("label",),
    "system": ("system",),
    "tools": ("tools", "functions"),
}
REQUIRED = ("label",)
GOOD = ("true", "1", "yes", "good", "desirable", "chosen", "accepted")
BAD = ("false", "0", "no", "bad", "undesirable", "rejected")
VERDICTS = dict.fromkeys(GOOD, True) | dict.fromkeys(BAD, False)
"""What a label says, by its text."""


def matches(row: Mapping[str, Any]) -> bool:
    """True for messages, or a prompt and a completion, with a label that says true or false."""
    sides = [row.get("prompt"), row.get("completion", row.get("response"))]
    whole = isinstance(row.get("messages"), list | tuple) or all(isinstance(side, str | list | tuple) for side in sides)
    return whole and _verdict(row.get("label")) is not None


def _verdict(label: Any) -> bool | None:
    """What a label says; None where it is none."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return VERDICTS.get(str(label).strip().lower()) if isinstance(label, bool | int | str) else None


def to_example(row: Mapping[str, Any], columns: Mapping[str, str]) -> Judged:
    """The conversation of a row, and the verdict on its last answer.

    Raises:
        RowError: the column or turn that is wrong, and why.
    """
    if field(row, columns, "messages", FIELDS["messages"]) is not None:
        turns = turns_in(row, columns, "messages", FIELDS["messages"], "assistant")
    elif field(row, columns, "prompt", FIELDS["prompt"]) is None:
        raise RowError("neither messages nor a prompt with a completion")
    else:
        turns = turns_in(row, columns, "prompt", FIELDS["prompt"], "user")
        value = required(row, columns, "completion", FIELDS["completion"])
        answer = [Message("assistant", value)] if isinstance(value, str) else None
        turns += answer or turns_in(row, columns, "completion", FIELDS["completion"], "assistant")

    def complete(given: Sequence[Message]) -> tuple[Message, ...]:
        return with_system(given, row, columns, FIELDS["system"])

    label = required(row, columns, "label", FIELDS["label"])
    good = _verdict(label)
    if good is None:
        where = f"column '{shown(row, columns, 'label', FIELDS['label'])}'"
        found = f"the text {label[:30]!r}" if isinstance(label, str) else kind(label)
        raise RowError(f"{where}: true or false expected, or a word such as good or bad, yes or no; found {found}")
    return Judged(
        Example(answered(turns, complete, "the judged answer"), tools_in(row, columns, FIELDS["tools"])), good
    )
