"""Plain values that travel between the rooms: rows, messages, examples, encoded examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
Split = Literal["train", "eval"]
LossOn = Literal["assistant", "last_turn", "all"]
Fate = Literal["kept", "truncated", "dropped", "duplicate", "unused"]
Material = Literal["texts", "pairs", "judged", "prompts"]
"""What a method learns from: texts and conversations, a better and a worse answer, answers with a verdict, or prompts
that the model answers itself."""
IGNORED = -100
"""The label of a token that is not trained, as in torch and transformers."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row came from: the source's index in the recipe, the file as shown to users, the 1-based line.

    ``line`` is the physical line for line-based files (json lines, txt; for csv the line on which the record begins)
    and the record's number for containers without lines (a json list, parquet, arrow, a Hub data set).
    """

    source: int
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Row:
    """One input row as read, before any format is applied."""

    origin: Origin
    value: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """An input row that could not be read or turned into an example, with the reason in words."""

    origin: Origin
    reason: str


class RowError(Exception):
    """Raised by a format when one row does not fit it; the message is the reason shown beside file and line."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    ``train`` overrides the recipe's ``loss_on`` for this turn when it is not None. ``tool_calls`` are mappings of the
    form ``{"type": "function", "function": {"name": str, "arguments": Mapping}}``.
    """

    role: Role
    content: str
    reasoning: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    name: str | None = None
    tool_call_id: str | None = None
    train: bool | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """What a format makes of a row: a conversation (``messages``), or plain ``text`` when there are no messages."""

    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two conversations (or texts) that are alike but for the last answer, of which one is better.

    ``margin``: by how much, in the units of the data; None where it does not say.
    """

    chosen: Example
    rejected: Example
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """A conversation (or text) whose last answer was found good or bad."""

    example: Example
    good: bool


@dataclass(frozen=True, slots=True)
class Question:
    """What a model is to answer by itself.

    ``example`` ends with the turn to be answered. ``reference`` is the right answer, empty where the data has none;
    ``columns`` are the row's own values, for rewards that are functions of them.
    """

    example: Example
    reference: str
    columns: Mapping[str, Any]


Learnt = Example | Judged | Question | tuple[Pair, ...]
"""What a format makes of a row: one of these, by the material it gives. A row may hold several pairs."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A rendered and tokenized example.

    ``input_ids`` and ``trained`` have one entry a token (length ``T``); ``turn_ends`` are the token positions of the
    end-of-turn tokens of the trained turns, which must be trained themselves; ``prompt_tokens`` is the number of
    tokens before the last assistant turn (what generation is prompted with). ``text`` is the rendered text.
    """

    input_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    turn_ends: tuple[int, ...]
    prompt_tokens: int
    text: str
