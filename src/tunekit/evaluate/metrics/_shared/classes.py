"""Classification: labels counted by class, so that numbers over classes can be resampled by row.

Shapes: ``N`` rows, ``K`` classes, ``R`` resamples. The classes are the labels of the references: what a model says
beside them is no class, only a wrong answer. So base and tuned model are measured by the same classes, whatever they
say. Where no answer is beside the classes, all numbers are those of scikit-learn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from tunekit.core.errors import DataError
from tunekit.core.registry import did_you_mean
from tunekit.evaluate.contract import SumStatistic
from tunekit.evaluate.text import TextRules

Part = Literal["precision", "recall", "f1"]


class AverageConfig(TextRules):
    """Options of precision, recall and F1."""

    average: Literal["macro", "micro", "weighted", "binary"] = Field(
        default="macro",
        description="macro: the mean of the classes; weighted: by their number of rows; micro: all rows "
        "alike; binary: of the class `positive` alone",
    )
    positive: str | None = Field(default=None, description="the label that average: binary counts")

    @model_validator(mode="after")
    def _positive(self) -> AverageConfig:
        if (self.average == "binary") != (self.positive is not None):
            raise ValueError("average: binary and positive: LABEL go together")
        return self


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often each label was answered for each label: ``counts[right][answered]``, in the order of ``labels``."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


def confusion(predictions: Sequence[str], references: Sequence[Sequence[str]], rules: TextRules) -> Confusion:
    """The confusion matrix; its labels are those of references and predictions, sorted."""
    pairs = Counter(labelled(predictions, references, rules))
    labels = sorted({label for pair in pairs for label in pair})
    return Confusion(tuple(labels), tuple(tuple(pairs[right, given] for given in labels) for right in labels))


def labelled(
    predictions: Sequence[str], references: Sequence[Sequence[str]], rules: TextRules
) -> list[tuple[str, str]]:
    """The right label and the answered one of each row; of several right ones that which was answered, or the first."""
    found = []
    for prediction, right in zip(predictions, references, strict=True):
        given, labels = rules.apply(prediction), [rules.apply(label) for label in right]
        found.append((given if given in labels else labels[0], given))
    return found


def classes(references: Sequence[Sequence[str]], rules: TextRules) -> list[str]:
    """The classes, sorted."""
    return sorted({rules.apply(label) for right in references for label in right})


def check_positive(references: Sequence[Sequence[str]], config: AverageConfig) -> None:
    """The class that is counted occurs; of a single row nothing is said.

    Raises:
        DataError: no row has the label ``positive``.
    """
    known = classes(references, config)
    if config.positive is not None and len(references) > 1 and config.apply(config.positive) not in known:
        raise DataError(f"no row has the label '{config.positive}'", fix=did_you_mean(config.positive, known))


def averaged_totals(
    predictions: Sequence[str], references: Sequence[Sequence[str]], config: AverageConfig
) -> list[tuple[float, ...]]:
    """(N, 3K): whether the answer is right, is given and should be given, for each class; micro: for all in one.

    Raises:
        DataError: no row has the label ``positive``.
    """
    check_positive(references, config)
    pairs = labelled(predictions, references, config)
    if config.average == "micro":
        return [(float(right == given), 1.0, 1.0) for right, given in pairs]
    counted = classes(references, config) if config.positive is None else [config.apply(config.positive)]
    place = {label: 3 * index for index, label in enumerate(counted)}
    found = []
    for right, given in pairs:
        row = [0.0] * (3 * len(counted))
        if right == given and right in place:
            row[place[right]] = 1.0
        if given in place:
            row[place[given] + 1] = 1.0
        if right in place:
            row[place[right] + 2] = 1.0
        found.append(tuple(row))
    return found


def averaged(part: Part, config: AverageConfig) -> SumStatistic:
    """Precision, recall or F1 of sums, 0 where nothing is counted; a class without rows is left out of the average."""

    def number(sums: Any) -> Any:
        import numpy as np

        hits, given, wanted = (sums[:, start::3] for start in range(3))  # (R, K) each
        below = {"precision": given, "recall": wanted, "f1": (given + wanted) / 2}[part]
        score = np.divide(hits, below, out=np.zeros_like(hits), where=below > 0)
        if config.average in ("binary", "micro"):
            return score[:, 0]
        weight = wanted if config.average == "weighted" else (wanted > 0).astype(np.float64)
        whole = weight.sum(axis=1)
        return np.divide((score * weight).sum(axis=1), whole, out=np.full(len(sums), np.nan), where=whole > 0)

    return number


def rightness(totals: Sequence[tuple[float, ...]], config: AverageConfig) -> list[float]:
    """1 for rows answered rightly, else 0; of ``positive`` alone: nan for rows that have nothing to do with it."""
    if config.average == "binary":
        return [row[0] if any(row) else float("nan") for row in totals]
    return [sum(row[0::3]) for row in totals]
