"""Where the trained text of each assistant turn stands in a rendered conversation: the value, and the cheap way.

A well-behaved template ends every prompt with the same text and every answer with the same token, so one look at the
rendered text finds all turns; what is found is checked against the answers. Anything else is left to ``locate`` (which
renders again) or to the template's own marks (``marks``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunekit.data.literals import Span

Dicts = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Turn:
    """One assistant turn of a rendered text.

    ``message`` is its index in the conversation. ``spans`` are the characters to train, in order; a template with marks
    may have several. ``stop`` is the end-of-turn token, None when the template writes none; it lies inside ``spans``
    unless the template's own marks leave it out.
    """

    message: int
    spans: tuple[Span, ...]
    stop: Span | None

    @property
    def start(self) -> int:
        """The first character to train."""
        return self.spans[0][0]

    @property
    def end(self) -> int:
        """One past the last character to train."""
        return self.spans[-1][1]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a probe conversation tells about a template; pairs are (a turn that is followed by others, the last turn).

    ``tail`` is the text that ends every prompt ("" when unknown), ``leads`` what the template writes between the prompt
    and an answer without reasoning (None when that cannot be told), ``gap`` what it writes between the last answer and
    its end-of-turn token, ``stops`` the end-of-turn tokens ("" for none). ``prefix_preserving``: every prompt of the
    probe is a prefix of the whole conversation. ``calls``: turns with tool calls end like any other.
    """

    tail: str = ""
    leads: tuple[str, str] | None = None
    gap: str = ""
    stops: tuple[str, str] = ("", "")
    prefix_preserving: bool = False
    calls: bool = False


def assistants(messages: Dicts) -> list[int]:
    """The indices of the assistant turns."""
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


def called(message: Mapping[str, Any]) -> list[str]:
    """The names of the functions that an assistant message calls."""
    return [str(call.get("function", call).get("name", "")) for call in message.get("tool_calls") or ()]


def common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    """The number of characters or tokens that ``a`` and ``b`` begin with in common."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def scan(text: str, messages: Dicts, facts: Facts) -> list[Turn] | None:
    """Finds all turns of a well-behaved template in one look; None when anything is not as the probe showed it."""
    turns, tail = assistants(messages), facts.tail
    if not tail or not all(facts.stops) or facts.leads is None or text.count(tail) != len(turns):
        return None
    if not facts.calls and any(messages[index].get("tool_calls") for index in turns):
        return None
    found: list[Turn] = []
    begin = text.find(tail)
    for index in turns:
        start = begin + len(tail)
        begin = text.find(tail, start)
        last = index == len(messages) - 1
        stop = text.find(facts.stops[last], start, begin if begin >= 0 else len(text))
        if stop < 0 or not _holds(text[start:stop], messages[index], facts.leads[last], facts.gap):
            return None
        end = stop + len(facts.stops[last])
        found.append(Turn(index, ((start, end),), (stop, end)))
    return found


def _holds(body: str, message: Mapping[str, Any], lead: str, gap: str) -> bool:
    """Whether ``body`` is what a well-behaved template makes of an assistant message (the answer may be trimmed)."""
    content, reasoning = message["content"].strip(), message.get("reasoning_content") or ""
    calls = message.get("tool_calls") or ()
    if calls:
        return content in body and reasoning.strip() in body and all(name in body for name in called(message))
    if body.startswith(lead) and body.endswith(gap) and body[len(lead) :].strip() == content:
        return True  # reasoning, if any, was left out by the template
    return bool(reasoning) and reasoning.strip() in body and body.rstrip().endswith(content)


def closing(text: str, begin: int, end: int, added: re.Pattern[str], stops: tuple[str, str]) -> list[Span]:
    """The end-of-turn tokens that ``text[begin:end]`` closes with, in order; only white space may stand around them.

    Args:
        text: the rendered conversation.
        begin: where to begin to look.
        end: the place before which they stand.
        added: matches the tokenizer's added tokens.
        stops: the known end-of-turn tokens; when one of them is there, it alone is returned.
    """
    run: list[Span] = []
    for match in added.finditer(text, begin, end):
        if run and text[run[-1][1] : match.start()].strip():
            run = []
        run.append(match.span())
    if run and text[run[-1][1] : end].strip():
        run = []
    known = [span for span in run if text[slice(*span)] in stops]
    return known[-1:] or run
