"""The reference occurs in the answer."""

from __future__ import annotations

from collections.abc import Sequence

from tunekit.core.errors import DataError
from tunekit.evaluate.text import TextRules

HIGHER_IS_BETTER = True


class Config(TextRules):
    """Options of the metric."""


def score(predictions: Sequence[str], references: Sequence[str], config: Config) -> list[float]:
    """1.0 for each prediction that its reference occurs in, else 0.0.

    Raises:
        DataError: a reference is empty, and would occur in every answer.
    """
    found = []
    for number, (prediction, reference) in enumerate(zip(predictions, references, strict=True), start=1):
        wanted = config.apply(reference)
        if not wanted:
            raise DataError(
                "an empty reference occurs in every answer, so metric 'contains' says nothing",
                where=f"evaluation row {number}",
                fix="choose another metric (exact_match), or leave the row out",
            )
        found.append(float(wanted in config.apply(prediction)))
    return found
