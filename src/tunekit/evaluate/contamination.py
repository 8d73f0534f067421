"""Which evaluation rows stand in the training data: word n-grams that both hold, and texts that are the same in whole.

Brown et al., Language models are few-shot learners (2020), appendix C, call a row of an evaluation dirty when it
shares one 13-gram of words with the training data; Llama Team, The Llama 3 herd of models (2024), section 5.1.4, take
8-grams and the share of the row that they cover. So here: 13-grams, and the share is told, for one 13-gram may be a
turn of phrase, and a share of a half is a copy.
"""

from __future__ import annotations

import unicodedata
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NGRAM = 13
_WORD = 4  # quarters of a word
_KEPT = 8  # training rows remembered for one n-gram
_PENDING = 1 << 20  # n-grams gathered before they are sorted
_COMMON_ROWS = 3  # two rows of an evaluation that are alike are duplicates, not a template

# Scripts written without spaces: first character of each range, first after it, quarters of a word in a character.
_UNSPACED = (
    (0x0E00, 0x1000, 1), (0x1000, 0x10A0, 1), (0x1780, 0x1800, 1),  # Thai, Lao, Tibetan; Burmese; Khmer
    (0x3005, 0x3008, _WORD), (0x3041, 0x3130, _WORD), (0x31F0, 0x3200, _WORD),  # kana, bopomofo
    (0x3400, 0x4DC0, _WORD), (0x4E00, 0xA000, _WORD), (0xF900, 0xFB00, _WORD), (0x20000, 0x32000, _WORD),  # Chinese
)  # fmt: skip
_STARTS = [start for start, _, _ in _UNSPACED]
_APOSTROPHES = "'\u2019\u02bc"


@dataclass(frozen=True, slots=True)
class Match:
    """An evaluation row found in the training data.

    Args:
        kind: ``exact``: the whole text, but for case, punctuation and white space; ``ngram``: parts of it.
        share: of the text's n-grams that could be found, those that were; 1.0 for ``exact``.
        where: the training row that holds most of them.
        part: which text of the row was found, the one with the larger share.
        words: the longest run found, as it was compared.
    """

    kind: Literal["exact", "ngram"]
    share: float
    where: str
    part: Literal["prompt", "reference"]
    words: str


class Index:
    """Hashes of the training data's n-grams, with the rows they stand in: 15 bytes an n-gram, 45 while sorting.

    Words are compared as NFKC, in one case, without punctuation. A character of a script without spaces is a word
    (Chinese, Japanese) or a quarter of one (Thai, Lao, Burmese, Khmer, Tibetan). A text shorter than an n-gram matches
    in whole only, and with its punctuation, for that may be all that tells 3*4 from 3/4.

    What is in a template that the evaluation's own rows share is no evidence: see `leave_out`.

    Args:
        ngram: length of an n-gram, in words.
        common: words that stand in more than this share of the evaluation's rows are a template.
    """

    def __init__(self, ngram: int = NGRAM, *, common: float = 0.05) -> None:
        assert ngram > 1 and 0 < common <= 1, (ngram, common)
        self._ngram, self._common = ngram, common
        self._table = _Table()
        self._wheres: list[str] = []
        self._left_out: set[int] = set()

    def __len__(self) -> int:
        """How many pairs of an n-gram and a row are held."""
        return len(self._table)

    def add(self, text: str, where: str) -> None:
        """Takes one text of a training row: a prompt, an answer, a message; by itself, so that it can match in whole.

        Args:
            text: the text as it is in the data, before any chat template.
            where: ``file:line`` of the row; texts of one row are added one after another.
        """
        if not self._wheres or self._wheres[-1] != where:
            self._wheres.append(where)
        row = len(self._wheres) - 1
        tokens = _words(text)
        self._table.add([*(key for _, _, key in _grams(tokens, self._ngram)), self._whole(text, tokens)], row)

    def leave_out(self, texts: Sequence[str]) -> None:
        """Takes what the evaluation's rows share for a template; called with all prompts, and with all references.

        Left out is what stands in more than ``common`` of the texts, and in at least 3: whole texts ("yes"), and runs
        of half an n-gram. An n-gram that holds part of such a run does not count, or the end of a template and the
        first word after it would be found wherever training uses the same template.
        """
        rows = Counter(key for text in texts for key in self._common_keys(text))
        least = max(_COMMON_ROWS - 1, self._common * len(texts))
        self._left_out |= {key for key, count in rows.items() if count > least}

    def look(self, prompt: str, reference: str = "") -> Match | None:
        """Looks for an evaluation row; its prompt and its reference each by itself, never across their border.

        A reference shorter than an n-gram is not looked for: "yes" and "42" are answers to many questions.
        """
        found = [self._found(prompt, "prompt"), self._found(reference, "reference")]
        return max(filter(None, found), key=lambda match: (match.share, match.kind == "exact"), default=None)

    def _found(self, text: str, part: Literal["prompt", "reference"]) -> Match | None:
        tokens = _words(text)
        grams = list(_grams(tokens, self._ngram))
        if not text.strip() or (part == "reference" and not grams):
            return None
        whole = self._whole(text, tokens)
        if whole not in self._left_out and (rows := self._table.rows([whole])[0]):
            return Match("exact", 1.0, self._wheres[rows[0]], part, " ".join(tokens))
        template = bytearray(len(tokens))
        for start, end, key in _grams(tokens, self._ngram // 2):
            if key in self._left_out:
                template[start:end] = b"\1" * (end - start)
        own = [(start, end, key) for start, end, key in grams if template.find(1, start, end) < 0]
        holders = self._table.rows([key for _, _, key in own])
        hits = [(start, end) for (start, end, _), rows in zip(own, holders, strict=True) if rows]
        if not hits:
            return None
        votes = Counter(row for rows in holders for row in rows)
        row = min(votes, key=lambda row: (-votes[row], row))
        start, end = _longest(hits)
        return Match("ngram", len(hits) / len(own), self._wheres[row], part, " ".join(tokens[start:end]))

    def _common_keys(self, text: str) -> set[int]:
        tokens = _words(text)
        return {self._whole(text, tokens), *(key for _, _, key in _grams(tokens, self._ngram // 2))}

    def _whole(self, text: str, tokens: list[str]) -> int:
        """Of a whole text; a line break keeps it apart from n-grams, which hold none."""
        long = next(_grams(tokens, self._ngram), None) is not None
        return _key("\n" + " ".join(tokens if long else _marked(text)))


class _Table:
    """Pairs of a 64-bit key and a row, sorted from time to time."""

    def __init__(self) -> None:
        self._new_keys, self._new_rows = array("Q"), array("I")
        self._keys: NDArray[np.uint64] | None = None
        self._rows: NDArray[np.uint32] | None = None

    def __len__(self) -> int:
        self._settle()
        return 0 if self._keys is None else len(self._keys)

    def add(self, keys: Iterable[int], row: int) -> None:
        """Remembers that ``row`` holds ``keys``."""
        before = len(self._new_keys)
        self._new_keys.extend(keys)
        self._new_rows.extend([row] * (len(self._new_keys) - before))
        if len(self._new_keys) > max(_PENDING, 0 if self._keys is None else len(self._keys) // 2):
            self._settle()

    def rows(self, keys: list[int]) -> list[list[int]]:
        """The first rows that hold each key."""
        import numpy as np

        self._settle()
        if self._keys is None or self._rows is None:
            return [[] for _ in keys]
        wanted = np.array(keys, dtype=np.uint64)
        first, last = (np.searchsorted(self._keys, wanted, side=side).tolist() for side in ("left", "right"))
        return [self._rows[a:b].tolist() for a, b in zip(first, last, strict=True)]

    def _settle(self) -> None:
        """Sorts in what is new, and keeps the first rows of each key."""
        import numpy as np

        if not self._new_keys:
            return
        keys: NDArray[np.uint64] = np.array(self._new_keys, dtype=np.uint64)
        rows: NDArray[np.uint32] = np.array(self._new_rows, dtype=np.uint32)
        self._new_keys, self._new_rows = array("Q"), array("I")
        if self._keys is not None and self._rows is not None:
            keys, rows = np.concatenate([self._keys, keys]), np.concatenate([self._rows, rows])
        order = np.argsort(keys, kind="stable")  # rows come in order, and stay so
        keys, rows = keys[order], rows[order]
        again = np.zeros(len(keys), dtype=bool)
        again[1:] = (keys[1:] == keys[:-1]) & (rows[1:] == rows[:-1])
        keys, rows = keys[~again], rows[~again]
        many = np.zeros(len(keys), dtype=bool)
        many[_KEPT:] = keys[_KEPT:] == keys[:-_KEPT]
        self._keys, self._rows = keys[~many], rows[~many]


class _Characters(dict[int, str | None]):
    """What each character becomes before words are told apart; filled as characters are met."""

    def __init__(self, marks: bool) -> None:
        self._marks = marks

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        kind = unicodedata.category(character)
        if _unspaced(code):
            found: str | None = f" {character} " if kind[0] in "LMN" or self._marks else " "
        elif kind[0] in "LMN":
            found = character
        elif kind == "Cf" or (character in _APOSTROPHES and not self._marks):
            found = None
        else:
            found = f" {character} " if self._marks and kind[0] in "PS" else " "
        self[code] = found
        return found


_WITHOUT_MARKS, _WITH_MARKS = _Characters(marks=False), _Characters(marks=True)


def _words(text: str) -> list[str]:
    """NFKC, casefold, no punctuation and symbols; a character of a script without spaces stands alone."""
    return unicodedata.normalize("NFKC", text).casefold().translate(_WITHOUT_MARKS).split()


def _marked(text: str) -> list[str]:
    """The same with punctuation, but for that at both ends."""
    tokens = unicodedata.normalize("NFKC", text).casefold().translate(_WITH_MARKS).split()
    inside = [place for place, token in enumerate(tokens) if unicodedata.category(token[0])[0] in "LMN"]
    return tokens[inside[0] : inside[-1] + 1] if inside else tokens


def _grams(tokens: list[str], words: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, key) of each n-gram: from each token on, until it holds ``words`` words."""
    end = held = 0
    for start, token in enumerate(tokens):
        while held < words * _WORD:
            if end == len(tokens):
                return
            held += _quarters(tokens[end])
            end += 1
        yield start, end, _key(" ".join(tokens[start:end]))
        held -= _quarters(token)


def _key(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _unspaced(code: int) -> int:
    """Quarters of a word in a character of a script without spaces, 0 for all else."""
    place = bisect_right(_STARTS, code) - 1
    return _UNSPACED[place][2] if place >= 0 and code < _UNSPACED[place][1] else 0


def _quarters(token: str) -> int:
    return _WORD if len(token) > 1 or token < "\u0e00" else _unspaced(ord(token)) or _WORD


def _longest(hits: list[tuple[int, int]]) -> tuple[int, int]:
    """The longest run among n-grams, which are in order and may overlap."""
    runs: list[tuple[int, int]] = []
    for start, end in hits:
        if runs and start <= runs[-1][1]:
            start = runs.pop()[0]
        runs.append((start, end))
    return max(runs, key=lambda run: run[1] - run[0])
