"""The answer is JSON of the reference's value; the order of keys is overlooked."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from tunekit.core.errors import DataError, Problem, raise_all
from tunekit.evaluate.metrics._shared import jsons
from tunekit.evaluate.text import best

HIGHER_IS_BETTER = True


class Config(BaseModel):
    """The metric has no options."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def check(references: Sequence[Sequence[str]], config: Config) -> None:
    """Reads the references.

    Raises:
        DataError: a reference is no JSON.
    """
    problems = []
    for row, right in enumerate(references, start=1):
        for text in right:
            try:
                jsons.read(text)
            except ValueError as error:
                what = f"metric 'json_equal' needs JSON; the reference {text[:60]!r} is none ({error})"
                fix = "choose another metric, or leave the row out"
                problems.append(Problem(what, f"evaluation row {row}", fix))
    raise_all(DataError, problems)


def score(predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[float]:
    """1.0 for each answer that has the value of one of its references, else 0.0.

    Raises:
        DataError: a reference is no JSON.
    """
    check(references, config)
    return best(_equal, predictions, references)


def _equal(prediction: str, reference: str) -> float:
    try:
        given = jsons.read(prediction)
    except ValueError:
        return 0.0
    return float(jsons.same(given, jsons.read(reference)))
