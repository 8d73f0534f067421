"""How a tokenizer cuts text before it merges, and the name that llama.cpp has for that cut.

llama.cpp knows cuts by name only (src/llama-vocab.cpp): a tokenizer.json whose cut is none of these is refused, since
its model would read other tokens than it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.core.errors import UserError

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+|"
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_ENDS = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + _ENDS
_PATHS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _ENDS
_MARKED = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
)
_QWEN35 = _WORDS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _ENDS
_BYTES, _BYTES_SPLIT = ("bytes", False), ("bytes", True)


def _at(*patterns: str) -> tuple[Any, ...]:
    return (*(("split", pattern, "Isolated") for pattern in patterns), _BYTES)


(HAN, _) = _at(r"\p{Han}")
CUTS: Mapping[tuple[Any, ...], tuple[str | None, str | None]] = {
    (_BYTES_SPLIT,): ("gpt-2", None),
    (("digits", True), _BYTES_SPLIT): ("smollm", None),
    _at(f"{_WORDS}|{_LETTERS}\\p{{N}}{{1,3}}{_SIGNS}"): ("smaug-bpe", "llama-bpe"),
    _at(f"{_WORDS}|{_LETTERS}\\p{{N}}{_SIGNS}"): ("qwen2", None),
    _at(_QWEN35): ("qwen35", None),
    _at(f"{_LOWER}{_WORDS}?|{_UPPER}{_WORDS}?|\\p{{N}}{{1,3}}{_PATHS}"): ("gpt-4o", None),
    _at(f"{_LOWER}|{_UPPER}|\\p{{N}}{_PATHS}"): (None, "tekken"),
    _at(r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _MARKED + _ENDS): ("deepseek-v3", None),
}
"""Of each cut: llama.cpp's name without and with ``ignore_merges``, which it derives from the name."""


def name_of(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for the cut of a byte-level tokenizer.

    Args:
        tokenizer: the content of tokenizer.json.

    Raises:
        UserError: llama.cpp has none.
    """
    steps = steps_of(tokenizer)
    ignoring = bool(tokenizer["model"].get("ignore_merges"))
    found = CUTS.get(tuple(step for step in steps if step != HAN), (None, None))[ignoring]
    if found is not None:
        return found
    what = " + ".join(f"{step[0]} {step[1]!r}" for step in steps) or "not at all"
    raise UserError(
        f"llama.cpp has no name for how the tokenizer cuts text: {what}{' with ignore_merges' if ignoring else ''}",
        where="tokenizer.json",
        fix="quantize to a format that transformers reads: nf4, int8, gptq4",
    )


def steps_of(tokenizer: Mapping[str, Any]) -> tuple[tuple[Any, ...], ...]:
    """The steps of a tokenizer.json's cut, without what does not change the tokens."""
    cut = tokenizer.get("pre_tokenizer")
    parts = [] if cut is None else cut["pretokenizers"] if cut["type"] == "Sequence" else [cut]
    return tuple(_step(part) for part in parts)


def _step(part: Mapping[str, Any]) -> tuple[Any, ...]:
    kind = part["type"]
    if kind == "ByteLevel" and not part.get("add_prefix_space"):
        return ("bytes", bool(part.get("use_regex", True)))
    if kind == "Digits":
        return ("digits", bool(part["individual_digits"]))
    if kind == "Split" and not part.get("invert"):
        return ("split", part["pattern"].get("Regex") or part["pattern"].get("String"), part["behavior"])
    if kind == "Metaspace":
        return ("metaspace", part["replacement"], part.get("prepend_scheme", "always"), part.get("split", True))
    return (kind, "of this kind")
