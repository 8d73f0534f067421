"""Shows an encoded example as the model sees it: what is trained, what is not, and where turns end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from tunekit.core.types import Encoded
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


def runs(encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> Iterator[Run]:
    """Cuts an example into runs. The text is decoded from the token ids; control characters are made visible."""
    special = set(tokenizer.convert_tokens_to_ids(sorted(control_tokens(tokenizer))))
    ends = set(encoded.turn_ends)
    ids = encoded.input_ids

    def kind(position: int) -> tuple[bool, int]:
        return encoded.trained[position], position if ids[position] in special or position in ends else -1

    for (trained, alone), group in groupby(range(len(ids)), key=kind):
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


def coloured(encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The example for a terminal: trained text green, other text dim, special tokens in boxes, ends of turns marked."""
    from rich.text import Text

    shown = Text()
    for run in runs(encoded, tokenizer):
        colour = "green" if run.trained else "dim"
        shown.append(run.text, style=f"bold {colour} reverse" if run.special else colour)
        if run.end:
            shown.append(
                " \N{LEFTWARDS ARROW} end" if run.trained else " \N{LEFTWARDS ARROW} end, not trained",
                style="bold yellow",
            )
    return shown


def marked(encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> str:
    """The example as plain text, with « and » around what is trained."""
    pieces: list[str] = []
    for trained, group in groupby(runs(encoded, tokenizer), key=lambda run: run.trained):
        text = "".join(run.text for run in group)
        pieces.append(f"«{text}»" if trained else text)
    return "".join(pieces)
