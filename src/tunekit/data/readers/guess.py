"""A guess at what bytes that are not UTF-8 may be: for the hint in the error only, never acted upon."""

from __future__ import annotations

MAGIC = {
    b"\x1f\x8b": "gzip data: let its name end in `.gz`",
    b"\x28\xb5\x2f\xfd": "zstd data: let its name end in `.zst`",
    b"PAR1": "a Parquet file: write `container: parquet`",
    b"ARROW1": "an Arrow file: write `container: arrow`",
    b"PK\x03\x04": "a zip archive: unpack it first",
}
CJK_PUNCTUATION = range(0x3000, 0x3040)
FULL_WIDTH = range(0xFF01, 0xFF5F)
KANA = range(0x3040, 0x3100)


def advice(head: bytes, sample: bytes, *, named: bool) -> str:
    """What to do about a file that does not decode.

    Args:
        head: the file's first bytes.
        sample: its bytes from the first wrong one on (from the beginning where the encoding was named).
        named: the user named the encoding (so UTF-8 is a guess too).
    """
    for magic, meaning in MAGIC.items():
        if head.startswith(magic):
            return f"the file is {meaning}"
    if named and _decodes(sample, "utf-8") is not None:
        return "the file looks like UTF-8: leave `encoding` out"
    damaged = "" if sample.count(0) > len(sample) // 5 else sample.decode("utf-8", "replace")
    wrong = damaged.count("\ufffd")
    if not named and wrong and sum(ord(c) > 127 for c in damaged) - wrong >= 2 * wrong:
        return "the rest looks like UTF-8: repair or remove this byte (iconv -c -f utf-8 -t utf-8 drops such bytes)"
    guess = guess_encoding(sample)
    if guess is None:
        return "write the file's encoding beside its path, for example `encoding: gbk` or `encoding: cp1252`"
    return f"the file looks like {guess}: write `encoding: {guess}`"


def guess_encoding(sample: bytes) -> str | None:
    """The most plausible encoding of a sample that is not UTF-8, or None when nothing is plausible."""
    if sample[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if sample.count(0) > len(sample) // 5:
        return "utf-16-le" if sample[1::2].count(0) > sample[0::2].count(0) else "utf-16-be"
    scores = {name: _plausible(sample, name) for name in ("gbk", "big5", "shift_jis", "cp1252", "gb18030")}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] >= 0.7 else None


def _decodes(sample: bytes, name: str) -> str | None:
    """The sample decoded strictly, without the character that its end may have cut; None when it does not decode."""
    for cut in range(min(4, len(sample))):
        try:
            return sample[: len(sample) - cut].decode(name)
        except UnicodeDecodeError:
            continue
    return None


def _plausible(sample: bytes, name: str) -> float:
    """The share of the non-ASCII characters that are usual in texts of that encoding."""
    text = _decodes(sample, name)
    if text is None:
        return 0.0
    places = [i for i, c in enumerate(text) if ord(c) > 127]
    if not places:
        return 0.0
    if name == "cp1252":
        good = sum(_isolated(text, i) for i in places)
        return good / len(places) if len(places) < len(text) / 4 else 0.0
    common = {"gbk": _gb2312, "gb18030": _gb2312, "big5": _big5, "shift_jis": _shift_jis}[name]
    share = sum(common(text[i]) for i in places) / len(places)
    if name == "shift_jis" and sum(ord(text[i]) in KANA for i in places) < len(places) / 5:
        return 0.0
    return share * 0.99 if name == "gb18030" else share


def _isolated(text: str, i: int) -> bool:
    around = text[max(0, i - 1) : i] + text[i + 1 : i + 2]
    usual = text[i].isalpha() or text[i] in "‘’“”–—…€£§°©®«»¿¡ \u00a0"
    return usual and all(ord(c) < 128 for c in around)


def _lead(char: str, name: str) -> int:
    try:
        return char.encode(name)[0]
    except UnicodeEncodeError:
        return 0


def _is_punctuation(char: str) -> bool:
    return ord(char) in CJK_PUNCTUATION or ord(char) in FULL_WIDTH


def _gb2312(char: str) -> bool:
    """Punctuation, or one of the 3755 commonest characters of GB 2312 (its first level)."""
    return _is_punctuation(char) or 0xB0 <= _lead(char, "gb2312") <= 0xD7


def _big5(char: str) -> bool:
    """Punctuation, or one of the 5401 frequent characters of Big5."""
    return _is_punctuation(char) or 0xA4 <= _lead(char, "big5") <= 0xC6


def _shift_jis(char: str) -> bool:
    """Kana, punctuation, or a character of JIS X 0208's first level."""
    return ord(char) in KANA or _is_punctuation(char) or 0x88 <= _lead(char, "shift_jis") <= 0x98
