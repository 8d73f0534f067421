"""Answers of reading comprehension compared by the rules of SQuAD v1.1 and of CMRC 2018."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CMRC_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》…·、「」（）－～『』")
# A Han character by itself; else a word, with the marks inside of it, or any other sign.
_CMRC_PIECE = re.compile(r"[\u4e00-\u9fa5]|(?:(?![\u4e00-\u9fa5])\w)+(?:[.,'](?:(?![\u4e00-\u9fa5])\w)+)*|[^\w\s]")


def squad_words(text: str) -> list[str]:
    """The words of an answer: lower case, without ASCII punctuation and without a, an, the.

    P. Rajpurkar et al., SQuAD: 100,000+ questions for machine comprehension of text, EMNLP 2016.
    """
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def cmrc_text(text: str) -> str:
    """An answer in lower case, without the signs that CMRC overlooks.

    Y. Cui et al., A span-extraction dataset for Chinese machine reading comprehension, EMNLP 2019.
    """
    return "".join(sign for sign in text.lower().strip() if sign not in _CMRC_PUNCTUATION).strip()


def cmrc_pieces(text: str) -> list[str]:
    """An answer as characters where it is Chinese and as words where it is not.

    Words are split by a rule of ours; the official script has NLTK's, which differ in English contractions.
    """
    return _CMRC_PIECE.findall(cmrc_text(text))


def overlap(given: Sequence[str], wanted: Sequence[str]) -> float:
    """F1 of two bags of words; 0 when they share none."""
    return _f1((Counter(given) & Counter(wanted)).total(), len(given), len(wanted))


def run_overlap(given: Sequence[str], wanted: Sequence[str]) -> float:
    """F1 of the longest run of pieces that both have; 0 when they share none."""
    longest = 0
    before = [0] * (len(wanted) + 1)  # lengths of the runs that end at the piece before
    for piece in given:
        now = [0] * (len(wanted) + 1)
        for place, other in enumerate(wanted, start=1):
            if piece == other:
                now[place] = before[place - 1] + 1
                longest = max(longest, now[place])
        before = now
    return _f1(longest, len(given), len(wanted))


def _f1(common: int, given: int, wanted: int) -> float:
    return 2 * common / (given + wanted) if common else 0.0
