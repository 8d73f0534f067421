"""ROUGE of the package rouge-score, over words that scripts without spaces have too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tunekit.evaluate.extras import need
from tunekit.evaluate.text import best, words

_SHORT = 3  # the stemmer leaves words of up to this many letters


class RougeConfig(BaseModel):
    """Options of a ROUGE metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    use_stemmer: bool = Field(default=False, description="overlook English word endings (Porter's stemmer)")


class Words:
    """A tokenizer for rouge-score: its own words for Latin script, whole words or characters for other scripts."""

    def __init__(self, stemmer: Any = None) -> None:
        self._stemmer = stemmer

    def tokenize(self, text: str) -> list[str]:
        """The words of ``text``."""
        found = words(text, ascii_latin=True)
        if self._stemmer is None:
            return found
        return [self._stemmer.stem(word) if len(word) > _SHORT and word.isascii() else word for word in found]


def fmeasures(
    kind: str, predictions: Sequence[str], references: Sequence[Sequence[str]], config: RougeConfig
) -> list[float]:
    """The F-measure of each row, 0 to 1, against the reference that fits best.

    C.-Y. Lin, ROUGE: a package for automatic evaluation of summaries, ACL 2004 workshop.

    Args:
        kind: ``rouge1`` to ``rouge9``, ``rougeL`` or ``rougeLsum``.
        predictions: N answers.
        references: N times one or more right answers.
        config: the options.

    Raises:
        UserError: rouge-score is not installed.
    """
    what = f"metric '{kind}'"
    library = need("rouge_score.rouge_scorer", "eval", what)
    tokenizer = Words(need("nltk.stem.porter", "eval", what).PorterStemmer() if config.use_stemmer else None)
    if kind in _BY_SUBSEQUENCE:
        fmeasure, counted = need("rouge_score.scoring", "eval", what).fmeasure, _BY_SUBSEQUENCE[kind]

        def subsequence(prediction: str, reference: str) -> float:
            hits, given, wanted = counted(tokenizer, prediction, reference)
            return float(fmeasure(hits / given, hits / wanted)) if given and wanted else 0.0

        return best(subsequence, predictions, references)
    scorer = library.RougeScorer([kind], tokenizer=tokenizer)
    return best(lambda given, wanted: float(scorer.score(wanted, given)[kind].fmeasure), predictions, references)


def _longest(tokenizer: Words, prediction: str, reference: str) -> tuple[int, int, int]:
    """Words of the longest common subsequence, of the prediction, and of the reference."""
    given, wanted = tokenizer.tokenize(prediction), tokenizer.tokenize(reference)
    return len(common_subsequence(wanted, given)), len(given), len(wanted)


def _longest_by_lines(tokenizer: Words, prediction: str, reference: str) -> tuple[int, int, int]:
    """As `_longest`, of the words that a line of the reference has in common with any line of the prediction.

    A word counts no more often than either text holds it, as in ROUGE 1.5.5.
    """
    given, wanted = ([tokenizer.tokenize(line) for line in text.split("\n")] for text in (prediction, reference))
    left = Counter(word for line in given for word in line) & Counter(word for line in wanted for word in line)
    hits = 0
    for line in wanted:
        for place in sorted({place for other in given for place in common_subsequence(line, other)}):
            if left[line[place]] > 0:
                left[line[place]] -= 1
                hits += 1
    return hits, sum(map(len, given)), sum(map(len, wanted))


_BY_SUBSEQUENCE = {"rougeL": _longest, "rougeLsum": _longest_by_lines}


def common_subsequence(reference: Sequence[str], prediction: Sequence[str]) -> list[int]:
    """Where the longest common subsequence stands in ``reference``; of several, that which rouge-score takes.

    A row of the usual table is computed at once, one bit a cell, where rouge-score goes cell by cell, which takes
    minutes for a few thousand answers: H. Hyyro, Bit-parallel LCS-length computation revisited, AWOCA 2004.
    """
    places: dict[str, int] = {}
    for index, word in enumerate(reference):
        places[word] = places.get(word, 0) | 1 << index
    whole = (1 << len(reference)) - 1
    rows = [whole]  # a bit of row j is 0 where the table's number grows along the reference
    for word in prediction:
        met = rows[-1] & places.get(word, 0)
        rows.append((rows[-1] + met | rows[-1] - met) & whole)

    def length(i: int, j: int) -> int:
        return i - (rows[j] & ((1 << i) - 1)).bit_count()

    found = []
    i, j = len(reference), len(prediction)
    while i and j:
        if reference[i - 1] == prediction[j - 1]:
            i, j = i - 1, j - 1
            found.append(i)
        elif length(i, j - 1) > length(i - 1, j):
            j -= 1
        else:
            i -= 1
    return found
