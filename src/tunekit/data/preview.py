"""Shows an encoded example as the model sees it: what is trained, what is not, and where turns end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from tunekit.core.types import Encoded, Material
from tunekit.data.literals import control_tokens

if TYPE_CHECKING:
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase

_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring tokens of one kind, as text; ``special`` is one special token, ``end`` an end of a trained turn."""

    text: str
    trained: bool
    special: bool = False
    end: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """The prompt or one of the answers of a row: ``encoded`` from the token ``begin`` on."""

    title: str
    encoded: Encoded
    begin: int = 0

    @property
    def size(self) -> str:
        """Its tokens in words."""
        trained = sum(self.encoded.trained)
        return f"{len(self.encoded.input_ids) - self.begin} tokens" + (f", {trained} trained" if self.begin else "")


def parts(row: Mapping[str, Any], material: Material) -> list[Part]:
    """A fitted row of preference data or prompts: what stands before the answers once, then each of them."""
    ids, labels, sizes = row["input_ids"], row["labels"], row["branches"]
    shared = at = len(ids) - sum(sizes)
    found = [Part("prompt", Encoded(tuple(ids[:shared]), (False,) * shared, (), shared, ""))]
    verdicts = ("good",) if row["score"] == 1 else ("bad",)
    for title, size in zip(("chosen", "rejected") if material == "pairs" else verdicts, sizes):
        sequence = tuple(ids[:shared] + ids[at : at + size])
        trained = (False,) * shared + tuple(label >= 0 for label in labels[at : at + size])
        ends = tuple(end - at + shared for end in row["turn_ends"] if at <= end < at + size)
        found.append(Part(title, Encoded(sequence, trained, ends, shared, ""), shared))
        at += size
    return found


def runs(encoded: Encoded, tokenizer: PreTrainedTokenizerBase, begin: int = 0) -> Iterator[Run]:
    """Cuts an example into runs. The text is decoded from the token ids; control characters are made visible.

    Args:
        encoded: the example.
        tokenizer: of its tokens.
        begin: the token to begin with.
    """
    special = set(tokenizer.convert_tokens_to_ids(sorted(control_tokens(tokenizer))))
    ends = set(encoded.turn_ends)
    ids = encoded.input_ids

    def kind(position: int) -> tuple[bool, int]:
        return encoded.trained[position], position if ids[position] in special or position in ends else -1

    for (trained, alone), group in groupby(range(begin, len(ids)), key=kind):
        positions = list(group)
        text = _text(tokenizer, ids, positions[0], positions[-1] + 1).translate(_VISIBLE)
        yield Run(text, trained, alone >= 0 and ids[alone] in special, alone in ends)


def _text(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...], begin: int, end: int) -> str:
    """Tokens as text; the one before them is decoded too, as a first word may lose its space."""
    lead = ids[begin - 1 : begin] if begin else ()
    before, whole = (
        tokenizer.decode(list(part), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for part in (lead, (*lead, *ids[begin:end]))
    )
    return str(whole[len(before) :] if whole.startswith(before) else whole)


def coloured(encoded: Encoded, tokenizer: PreTrainedTokenizerBase, begin: int = 0) -> Text:
    """The example for a terminal: trained text green, other text dim, special tokens in boxes, ends of turns marked."""
    from rich.text import Text

    shown = Text()
    for run in runs(encoded, tokenizer, begin):
        colour = "green" if run.trained else "dim"
        shown.append(run.text, style=f"bold {colour} reverse" if run.special else colour)
        if run.end:
            shown.append(
                " \N{LEFTWARDS ARROW} end" if run.trained else " \N{LEFTWARDS ARROW} end, not trained",
                style="bold yellow",
            )
    return shown


def marked(encoded: Encoded, tokenizer: PreTrainedTokenizerBase, begin: int = 0) -> str:
    """The example as plain text, with « and » around what is trained."""
    pieces: list[str] = []
    for trained, group in groupby(runs(encoded, tokenizer, begin), key=lambda run: run.trained):
        text = "".join(run.text for run in group)
        pieces.append(f"«{text}»" if trained else text)
    return "".join(pieces)
