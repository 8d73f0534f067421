"""Keeps strings such as ``</s>`` that stand in the data apart from the control tokens that a chat template writes.

A row that holds such a string is rendered with ASCII placeholders in its place; afterwards the strings are put back and
their places are remembered, so that the tokenizer is never asked to read them as control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]  # characters [start, end) of the rendered text


def any_of(strings: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches any of ``strings``, the longest first; it matches nothing when there are none."""
    longest_first = sorted((re.escape(s) for s in strings if s), key=lambda s: (-len(s), s))
    return re.compile("|".join(longest_first) or r"(?!)")


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """All strings that the tokenizer cuts out before its model sees the text: special tokens and added tokens."""
    return frozenset(tokenizer.added_tokens_encoder) | frozenset(tokenizer.all_special_tokens)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """The strings that must never come from data: every token that the tokenizer flags as special.

    Added tokens without that flag (Qwen3's ``<think>`` and ``<tool_call>``, runs of spaces in code models) are
    vocabulary: an answer that holds them means them.
    """
    flagged = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    return frozenset(flagged) | frozenset(tokenizer.all_special_tokens)


def strings_in(value: Any) -> Iterator[str]:
    """Every string inside nested mappings and sequences, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings_in(key)
            yield from strings_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_in(item)


def _occurs(pattern: re.Pattern[str], value: Any) -> bool:
    """Whether a string inside ``value`` matches; every row is asked, so this is the quick way through."""
    waiting = [value]
    for item in waiting:  # which grows while it is walked
        if isinstance(item, str):
            if pattern.search(item):
                return True
        elif isinstance(item, dict):
            waiting += item
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return False


def plain(value: Any) -> Any:
    """``value`` with mappings as dicts and sequences as lists, as templates expect them."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class Placeholders:
    """The placeholders of one row. Without ``found`` nothing was replaced and restoring costs nothing."""

    stem: str = ""
    found: tuple[str, ...] = ()

    def restore(self, text: str) -> tuple[str, tuple[Span, ...], list[tuple[int, int]]]:
        """Puts the strings back.

        Returns:
            The text as the user wrote it, the spans of the strings in it, and the shifts ``(position, characters)``:
            a position in the given text moves by the shift of the last entry at or before it.
        """
        pieces: list[str] = []
        spans: list[Span] = []
        shifts: list[tuple[int, int]] = []
        last = length = 0
        for match in re.finditer(rf"{self.stem}(\d+)z", text) if self.found else ():
            literal = self.found[int(match.group(1))]
            pieces += text[last : match.start()], literal
            length += match.start() - last
            spans.append((length, length + len(literal)))
            length += len(literal)
            last = match.end()
            shifts.append((last, length - last))
        pieces.append(text[last:])
        return "".join(pieces), tuple(spans), shifts


def moved(position: int, shifts: list[tuple[int, int]]) -> int:
    """Where ``position`` of the text with placeholders stands in the restored text."""
    shift = 0
    for start, by in shifts:
        if start > position:
            break
        shift = by
    return position + shift


def hide(value: Any, control: re.Pattern[str]) -> tuple[Any, Placeholders]:
    """Replaces every control-token string inside ``value`` (nested dicts and lists) by a placeholder.

    The placeholders are letters and digits only, so that no template trims, escapes or splits them, and occur nowhere
    else in ``value``. A value without such strings is returned as it is.
    """
    if not _occurs(control, value):
        return value, Placeholders()
    texts = list(strings_in(value))
    number = 0
    while any(f"tkhold{number}n" in text for text in texts):
        number += 1
    stem = f"tkhold{number}n"
    found: list[str] = []

    def placeholder(match: re.Match[str]) -> str:
        if match.group() not in found:
            found.append(match.group())
        return f"{stem}{found.index(match.group())}z"

    def replaced(item: Any) -> Any:
        if isinstance(item, str):
            return control.sub(placeholder, item)
        if isinstance(item, dict):
            return {replaced(key): replaced(inner) for key, inner in item.items()}
        if isinstance(item, list):
            return [replaced(inner) for inner in item]
        return item

    return replaced(value), Placeholders(stem, tuple(found))
