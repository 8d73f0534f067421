"""A tokenizer as llama.cpp keeps it: tokens, their types and merges, the special ones, and the chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunekit.compress.ggml.families import ELSEWHERE
from tunekit.compress.ggml.splits import HAN, name_of, steps_of
from tunekit.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # as gguf.TokenType
_SPACE = "▁"
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """What is written under ``tokenizer.``.

    Args:
        model: ``gpt2``: merges of bytes; ``llama``: merges of characters, with tokens for bytes.
        pre: llama.cpp's name for how text is cut.
        tokens: by id.
        types: of each.
        scores: of each under ``llama``: the higher, the sooner it is merged.
        merges: under ``gpt2``.
        keys: special ids and switches, without ``tokenizer.ggml.`` in front.
        template: the chat template.
        led: texts are tokenized as in transformers where a special token stands first, as in chats.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    keys: dict[str, int | bool] = field(default_factory=dict)
    template: str | None = None
    led: bool = False


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, rows: int, stops: Sequence[int]) -> Vocabulary:
    """A tokenizer as llama.cpp keeps it.

    Args:
        tokenizer: a fast one.
        rows: of the model's embedding; those beyond the tokenizer's get names of their own.
        stops: ids that end an answer, the likeliest first.

    Raises:
        UserError: llama.cpp cannot cut text as it does, or it has more tokens than the model has rows.
    """
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    kind, top = whole["model"].get("type"), max(tokenizer.get_vocab().values())
    if kind != "BPE" or whole["model"].get("dropout") or whole["model"].get("end_of_word_suffix"):
        raise UserError(f"the tokenizer is of kind {kind}: llama.cpp is given merges (BPE) only",
                        where="tokenizer.json", fix=ELSEWHERE)  # fmt: skip
    if top >= rows:
        raise UserError(f"the tokenizer has an id {top:,}, the model {rows:,} rows", where="tokenizer.json",
                        fix="save the model with the tokenizer that it was trained with")  # fmt: skip
    texts = {index: text for text, index in tokenizer.get_vocab().items()}
    added = {token["id"]: token for token in whole["added_tokens"]}
    tokens = _named(texts, rows)
    types = [NORMAL if index in texts else UNUSED for index in range(rows)]
    for index, token in added.items():
        types[index] = CONTROL if token["special"] else USER
    merges = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in whole["model"]["merges"]]
    keys = _special(tokenizer, stops)
    template = tokenizer.get_chat_template() if tokenizer.chat_template else None
    if whole["model"].get("byte_fallback"):
        prefix = _prefix(whole)
        _spaced(tokens, types, added, whole["model"].get("unk_token"))
        scores = _scores(tokens, merges)
        keys |= {"add_space_prefix": prefix is True}
        return Vocabulary("llama", "default", tokens, types, scores, keys=keys, template=template, led=prefix is None)
    if (whole.get("normalizer") or {}).get("type") not in (None, "NFC"):
        raise UserError("the tokenizer rewrites text before it cuts it, which llama.cpp does not do",
                        where="tokenizer.json", fix=ELSEWHERE)  # fmt: skip
    pre = name_of(whole)
    if HAN in steps_of(whole):
        _stand_alone(tokens, types)
    joined = [" ".join(pair) for pair in merges]
    return Vocabulary("gpt2", pre, tokens, types, merges=joined, keys=keys, template=template)


def _named(texts: Mapping[int, str], rows: int) -> list[str]:
    """The tokens by id, each once: llama.cpp finds them by their text."""
    taken, found = set(texts.values()), []
    for index in range(rows):
        text = texts.get(index) or f"[PAD{index}]"
        while index not in texts and text in taken:
            text = f"[{text}]"
        found.append(text)
    return found


def _special(tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]) -> dict[str, int | bool]:
    """Ids of special tokens, and whether llama.cpp puts some around a text."""
    around = tokenizer("a")["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    found: dict[str, int | bool] = {
        "bos_token_id": eos if bos is None else bos,  # llama.cpp would take some token by its number
        "eos_token_id": eos,
        "add_bos_token": bos is not None and around[0] == bos,
        "add_eos_token": len(around) > 1 and around[-1] == eos,
    }
    names = {"unknown_token_id": tokenizer.unk_token_id, "padding_token_id": tokenizer.pad_token_id}
    found |= {name: index for name, index in names.items() if index is not None}
    others = [index for index in dict.fromkeys(stops) if index != eos] or [eos]
    return found | dict(zip(("eot_token_id", "eom_token_id"), others))


def _bytes_of_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level token stands for (Radford et al. 2019)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + at): byte for at, byte in enumerate(hidden)}


def _stand_alone(tokens: list[str], types: list[int]) -> None:
    """Marks the tokens of single Han characters, in place, as user's own: llama.cpp takes those out before it cuts.

    That is what a cut around each Han character does, but for characters of several tokens: two newlines before such a
    one are two tokens in llama.cpp.

    Raises:
        UserError: a token holds such a character and more.
    """
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    letters, rest = _bytes_of_letters(), Split(Regex(HAN[1]), "removed")
    for index, (text, kind) in enumerate(zip(tokens, types)):
        if kind != NORMAL:
            continue
        shown = bytes(letters[letter] for letter in text).decode("utf-8", errors="ignore")
        if shown and not rest.pre_tokenize_str(shown) and len(shown) == 1:
            tokens[index], types[index] = shown, USER
        elif shown and "".join(part for part, _ in rest.pre_tokenize_str(shown)) != shown:
            raise UserError(f"the token {shown!r} crosses a cut of its own tokenizer", where="tokenizer.json",
                            fix=ELSEWHERE)  # fmt: skip


def _prefix(whole: Mapping[str, Any]) -> bool | None:
    """Whether a space is put before a text and behind each special token; None: before a text that starts plainly.

    Raises:
        UserError: it is put elsewhere.
    """
    steps, normal = steps_of(whole), whole.get("normalizer")
    first = {"type": "Prepend", "prepend": _SPACE}
    if not steps and normal == {"type": "Sequence", "normalizers": [first, _REPLACE]}:
        return True
    if steps in ((), (("split", " ", "MergedWithPrevious"),)) and normal == _REPLACE:
        return False
    if normal is None and len(steps) == 1 and steps[0][:2] == ("metaspace", _SPACE) and not steps[0][3]:
        if steps[0][2] == "never":
            return False
        if steps[0][2] == "first":
            return None
    what = ", ".join(map(str, steps[0])) if steps else "its normalizer's"
    raise UserError(f"the tokenizer puts spaces where llama.cpp does not: {what}", where="tokenizer.json",
                    fix=ELSEWHERE)  # fmt: skip


def _spaced(tokens: Iterable[str], types: list[int], added: Mapping[int, Any], unknown: str | None) -> None:
    """Gives tokens of bytes and the unknown one their types, in place."""
    for index, text in enumerate(tokens):
        if text == unknown:
            types[index] = UNKNOWN
        elif index not in added and _BYTE_TOKEN.fullmatch(text):
            types[index] = BYTE


def _scores(tokens: Sequence[str], merges: Sequence[Sequence[str]]) -> list[float]:
    """Minus the rank of the first merge that makes a token; what none makes comes last."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(text, len(merges))) for text in tokens]
