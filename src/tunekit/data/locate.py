"""Finds the assistant turns of any chat template by rendering the conversation again.

Where an answer begins is where the prompt before it ends: the conversation up to the turn, rendered with the generation
prompt. Where it ends shows when the answer is replaced by a sentinel: what does not change lies outside.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from tunekit.core.types import RowError
from tunekit.data.literals import Span
from tunekit.data.spans import Dicts, Facts, Turn, assistants, called, closing, common_prefix, scan

Draw = Callable[[Dicts, bool], str]  # (messages, add_generation_prompt) -> rendered text


class Region(NamedTuple):
    """The characters of a rendered conversation that change with a message.

    ``exact_begin`` and ``exact_end``: everything before, everything after is the same in both renderings.
    """

    begin: int
    end: int
    exact_begin: bool
    exact_end: bool


class Locator:
    """Finds turns by rendering.

    Args:
        draw: renders messages with the template and the tools of the row.
        added: matches the tokenizer's added tokens, the longest first.
        bos: the beginning-of-sequence token when it does not end sequences as well, else "".
        facts: what is known of the template.
    """

    def __init__(self, draw: Draw, added: re.Pattern[str], bos: str, facts: Facts) -> None:
        self.draw, self.added, self.bos, self.facts = draw, added, bos, facts

    def turns(self, text: str, messages: Dicts) -> list[Turn]:
        """Every assistant turn, with two renders or more for each.

        Raises:
            RowError: the template does not tell where a turn begins or ends.
        """
        found: list[Turn] = []
        for index in assistants(messages):
            turn = self._turn(text, messages, index)
            if turn.start > turn.end or (found and turn.start < found[-1].end):
                raise RowError(f"{named(index)}: the chat template does not tell it from the turns around it")
            found.append(turn)
        return found

    def region(self, text: str, messages: Dicts, index: int, *, whole: bool = True) -> Region:
        """What changes when a message's content (``whole``: its tool calls and reasoning too) gives way to a sentinel.

        Raises:
            RowError: the template refuses the change, or does not write the message exactly once.
        """
        number = 0
        while f"tksentinel{number}q" in text:
            number += 1
        sentinel = f"tksentinel{number}q"
        dropped = ("tool_calls", "reasoning_content", "thinking") if whole else ()
        changed = {key: value for key, value in messages[index].items() if key not in dropped} | {"content": sentinel}
        other = self.draw([*messages[:index], changed, *messages[index + 1 :]], False)
        if other.count(sentinel) != 1:
            times = other.count(sentinel)
            raise RowError(f"{named(index)}: the chat template writes its content {times} times, not once")
        before, after = other.split(sentinel)
        begin = common_prefix(text, before)
        same = common_prefix(text[begin:][::-1], after[::-1])
        return Region(begin, len(text) - same, begin == len(before), same == len(after))

    def stop_after(self, text: str, end: int) -> Span | None:
        """The end-of-turn token behind an answer that ends at ``end``; None when the template writes none."""
        match = self.added.match(text, end)
        gap = self.facts.gap
        if match is None and gap and text.startswith(gap, end):
            match = self.added.match(text, end + len(gap))
            if match is not None and match.group() not in self.facts.stops:
                return None
        return match.span() if match is not None and match.group() != self.bos else None

    def _turn(self, text: str, messages: Dicts, index: int) -> Turn:
        if messages[index].get("tool_calls"):
            return self._calling_turn(text, messages, index)
        region = self.region(text, messages, index)
        start = self._start(text, messages, index, region)
        if region.exact_end:
            stop = self.stop_after(text, region.end)
            return Turn(index, ((start, stop[1] if stop else region.end),), stop)
        stop = self._stop_by_prefix(text, messages, index, start)
        if stop is None:
            raise RowError(f"{named(index)}: the chat template does not tell where its answer ends")
        return Turn(index, ((start, stop[1]),), stop)

    def _calling_turn(self, text: str, messages: Dicts, index: int) -> Turn:
        """A turn with tool calls; what follows it, such as the tool's result, is never taken for a part of it."""
        region = None
        try:
            region = self.region(text, messages, index)
            limit = self.region(text, messages, index + 1).begin if index + 1 < len(messages) else len(text)
        except RowError:  # the template refuses results without their call, or writes no content beside calls
            limit = 0
        start = self._start(text, messages, index, region)
        stop = self._stop_by_prefix(text, messages, index, start)
        if stop is None and region is not None and region.exact_end and region.end <= limit:
            stop = self.stop_after(text, region.end)
        names = called(messages[index])
        if stop is None or not all(name in text[start : stop[0]] for name in names):
            lost = not all(name in text[start:] for name in names)
            words = "write its tool calls" if lost else "tell where its tool calls end"
            raise RowError(f"{named(index)}: the chat template does not {words}")
        return Turn(index, ((start, stop[1]),), stop)

    def _start(self, text: str, messages: Dicts, index: int, region: Region | None) -> int:
        prompt = self.render_or_none(messages[:index], True) if index else None
        if prompt is not None and text.startswith(prompt):
            return len(prompt)
        if region is not None:
            tail = self.facts.tail
            found = text.rfind(tail, 0, region.begin) if tail else -1
            if found >= 0 and not self.added.sub("", text[found + len(tail) : region.begin]).strip():
                return found + len(tail)
            if region.exact_begin:
                return region.begin
        raise RowError(f"{named(index)}: the chat template does not tell where its answer begins")

    def render_or_none(self, messages: Dicts, generation_prompt: bool) -> str | None:
        """A rendering; None when the template refuses a conversation that ends there."""
        try:
            return self.draw(messages, generation_prompt)
        except RowError:
            return None

    def _stop_by_prefix(self, text: str, messages: Dicts, index: int, start: int) -> Span | None:
        """The token that closes the conversation up to a turn, as far as that is how the whole one begins."""
        upto = self.render_or_none(messages[: index + 1], False)
        if upto is None:
            return None
        shared = common_prefix(text, upto)
        cut = shared
        if shared < len(upto):  # it ends otherwise than it goes on; no token is cut in two
            cut = next((m.start() for m in self.added.finditer(text, start) if m.start() < shared < m.end()), shared)
        found = closing(text, start, cut, self.added, self.facts.stops)[-1:]
        if shared < len(upto) and not messages[index].get("tool_calls"):
            found = [span for span in found if text[slice(*span)] in self.facts.stops]
        return found[0] if found else None


PROBE: Dicts = (
    {"role": "user", "content": "tkprobe which a"},
    {"role": "assistant", "content": "tkprobe this b"},
    {"role": "user", "content": "tkprobe and c"},
    {"role": "assistant", "content": "tkprobe that d"},
)
_CALL = {"type": "function", "id": "tkprobeid", "function": {"name": "tkprobe_call", "arguments": {"x": "tkprobe e"}}}
CALL_PROBE: Dicts = (
    PROBE[0],
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "content": "tkprobe found f", "name": "tkprobe_call", "tool_call_id": "tkprobeid"},
    *PROBE[1:],
)
PROBE_TOOLS: Dicts = (
    {
        "type": "function",
        "function": {
            "name": "tkprobe_call",
            "description": "tkprobe g",
            "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "tkprobe h"}}},
        },
    },
)


def learn(locator: Locator) -> Facts:
    """What a template does with two plain questions and answers; no facts when it refuses such a conversation."""
    text, asked = locator.render_or_none(PROBE, False), locator.render_or_none(PROBE[:1], False)
    first, second = locator.render_or_none(PROBE[:1], True), locator.render_or_none(PROBE[:3], True)
    if text is None or first is None or second is None or any(text.count(m["content"]) != 1 for m in PROBE):
        return Facts()
    spots = [
        (text.index(PROBE[i]["content"]), text.index(PROBE[i]["content"]) + len(PROBE[i]["content"])) for i in (1, 3)
    ]
    tail = first[len(asked) :] if asked is not None and first.startswith(asked) else ""
    tail = tail or first[len(first) - common_prefix(first[::-1], second[::-1]) :].lstrip()
    rest = text[spots[1][1] :]
    gap = rest[: len(rest) - len(rest.lstrip())]
    gap = gap if locator.added.match(rest, len(gap)) else ""
    stops = []
    for _, end in spots:
        match = locator.added.match(text, end)
        if match is None and text.startswith(gap, end):
            match = locator.added.match(text, end + len(gap))
        stops.append(match.group() if match is not None and match.group() != locator.bos else "")
    if gap and stops[0] != stops[1]:
        stops[0] = ""  # white space and then the next turn's first token, as far as one can tell
    fits = text.startswith(first) and text.startswith(second)
    leads = (text[len(first) : spots[0][0]], text[len(second) : spots[1][0]]) if fits else None
    return Facts(tail, leads, gap, (stops[0], stops[1]), fits)


def calls_scan(locator: Locator) -> bool:
    """Whether one look finds the turns of a conversation with a tool call as rendering again does.

    Args:
        locator: draws with the probe's tools, and knows the facts of the template.
    """
    text = locator.render_or_none(CALL_PROBE, False)
    found = None if text is None else scan(text, CALL_PROBE, replace(locator.facts, calls=True))
    if text is None or found is None:
        return False
    try:
        return found == locator.turns(text, CALL_PROBE)
    except RowError:
        return False


def named(index: int) -> str:
    """How a message is called in a reason."""
    return f"message {index + 1}"
