"""The reference occurs in the answer."""

from __future__ import annotations

from collections.abc import Sequence

from tunekit.core.errors import DataError, Problem, raise_all
from tunekit.evaluate.text import TextRules, best

HIGHER_IS_BETTER = True


class Config(TextRules):
    """Options of the metric."""


def check(references: Sequence[Sequence[str]], config: Config) -> None:
    """Finds empty references.

    Raises:
        DataError: a reference is empty, and would occur in every answer.
    """
    what = "an empty reference occurs in every answer, so metric 'contains' says nothing"
    fix = "choose another metric (exact_match), or leave the row out"
    rows = [row for row, right in enumerate(references, start=1) if not all(map(config.apply, right))]
    raise_all(DataError, [Problem(what, f"evaluation row {row}", fix) for row in rows])


def score(predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[float]:
    """1.0 for each prediction that one of its references occurs in, else 0.0.

    Raises:
        DataError: a reference is empty, and would occur in every answer.
    """
    check(references, config)
    return best(lambda given, right: float(config.apply(right) in config.apply(given)), predictions, references)
