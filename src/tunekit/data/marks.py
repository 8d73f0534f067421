"""Assistant turns from the ``{% generation %}`` marks that a chat template carries itself."""

from __future__ import annotations

from collections.abc import Sequence

from tunekit.core.types import RowError
from tunekit.data.literals import Span
from tunekit.data.locate import Locator
from tunekit.data.spans import Dicts, Turn, assistants, closing


def marked_turns(text: str, marks: Sequence[Span], messages: Dicts, locator: Locator) -> list[Turn]:
    """Every assistant turn with its marks; one that the marks leave out is not among them.

    One mark for each turn, holding its answer, is taken as it is; otherwise each turn is located to see whose marks
    they are (one more render a turn).
    """
    joined: list[Span] = []
    for begin, end in marks:
        if begin < end:
            first = joined.pop()[0] if joined and joined[-1][1] == begin else begin
            joined.append((first, end))
    turns = assistants(messages)
    groups: list[list[Span]] = [[mark] for mark in joined]
    if len(joined) != len(turns) or any(
        messages[index]["content"].strip() not in text[slice(*mark)] for index, mark in zip(turns, joined, strict=True)
    ):
        groups = _by_turn(text, joined, messages, locator)
    found = []
    for index, group in zip(turns, groups, strict=True):
        if group:
            end = group[-1][1]
            stops = closing(text, group[-1][0], end, locator.added, locator.facts.stops)
            found.append(Turn(index, tuple(group), stops[-1] if stops else locator.stop_after(text, end)))
    return found


def _by_turn(text: str, marks: Sequence[Span], messages: Dicts, locator: Locator) -> list[list[Span]]:
    """Marks by turn: those that hold some of what changes with the turn; any other belongs to the turn before it."""
    regions = [locator.region(text, messages, index) for index in assistants(messages)]
    groups: list[list[Span]] = [[] for _ in regions]
    for begin, end in marks:
        owners = [k for k, r in enumerate(regions) if begin < max(r.end, r.begin + 1) and r.begin < end]
        before = [k for k, r in enumerate(regions) if r.begin <= begin]
        if not owners and not before:
            raise RowError("the chat template's generation marks begin before the first assistant turn")
        groups[owners[0] if owners else before[-1]].append((begin, end))
    return groups


def enclose(text: str, marks: Sequence[Span], messages: Dicts) -> bool:
    """Whether the marks hold the answers of a conversation whose contents occur only once each."""
    spots = [(text.find(messages[i]["content"]), len(messages[i]["content"])) for i in assistants(messages)]
    return all(any(begin <= at and at + size <= end for begin, end in marks) for at, size in spots)
