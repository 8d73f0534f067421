"""What metrics over text agree on: what is overlooked when two texts are compared, and what a word is."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# Scripts written without spaces: each character is a word of its own. First and last code points.
_UNSPACED = (
    (0x0E00, 0x0FFF),  # Thai, Lao, Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),
    (0x3040, 0x312F),  # kana, Bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xA000, 0xA4CF),  # Yi
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # kana of half width
    (0x1B000, 0x1B16F),
    (0x20000, 0x3FFFF),
)
# Letters and digits that a text in Latin script may hold beside those of ASCII.
_LATIN = (
    (0x0080, 0x036F),
    (0x1E00, 0x1EFF),
    (0x2000, 0x2BFF),  # raised digits, letter-like signs, fractions
    (0x2C60, 0x2C7F),
    (0xA720, 0xA7FF),
    (0xAB30, 0xAB6F),
    (0xFB00, 0xFB06),
)
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}


class TextRules(BaseModel):
    """What is overlooked when two texts are compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strip: bool = Field(default=True, description="overlook white space at both ends")
    ignore_case: bool = Field(default=False, description="overlook upper and lower case")
    normalize: Literal["none", "nfkc"] = Field(
        default="none", description="nfkc: overlook the form of characters, such as full width"
    )

    def apply(self, text: str) -> str:
        """``text`` as it is compared."""
        if self.normalize == "nfkc":
            text = unicodedata.normalize("NFKC", text)
        if self.ignore_case:
            text = text.casefold()
        return text.strip() if self.strip else text


def best(
    score: Callable[[str, str], float], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """``score(prediction, reference)`` of each row, the highest of its references'."""
    pairs = zip(predictions, references, strict=True)
    return [max(score(prediction, reference) for reference in right) for prediction, right in pairs]


def words(text: str, *, ascii_latin: bool = False) -> list[str]:
    """The words of a text in lower case, without punctuation; in scripts without spaces each character is one.

    Args:
        text: any text; ASCII written in full width is read as ASCII.
        ascii_latin: of Latin script only a-z and 0-9 are letters, as in ROUGE: an accented letter parts two words.
    """
    found: list[str] = []
    run = ""
    for character in text.translate(_FULL_WIDTH).lower():
        kind = _kind(character)
        if kind == "letter" or (kind == "latin" and not ascii_latin):
            run += character
            continue
        if run:
            found.append(run)
            run = ""
        if kind == "word":
            found.append(character)
    return [*found, run] if run else found


@lru_cache(maxsize=1 << 16)
def _kind(character: str) -> Literal["letter", "latin", "word", "gap"]:
    """What a character is to a word; ``latin``: a letter of Latin script beyond ASCII."""
    code = ord(character)
    if not (character.isalnum() or unicodedata.category(character) in ("Mn", "Mc")):
        return "gap"
    if any(low <= code <= high for low, high in _UNSPACED):
        return "word"
    return "latin" if any(low <= code <= high for low, high in _LATIN) else "letter"
