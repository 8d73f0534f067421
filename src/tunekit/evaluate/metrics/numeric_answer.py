"""The last number of the answer equals the last number of the reference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

from pydantic import BaseModel, ConfigDict, Field

from tunekit.core.errors import DataError, Problem, raise_all
from tunekit.evaluate.text import best

HIGHER_IS_BETTER = True

FINAL = "####"  # GSM8K writes the final answer after this mark
# Digits may be of any script (Decimal reads them all); marks are brought to ASCII. A full-width comma is a thousands
# mark only between full-width digits, because Chinese text also writes it between clauses.
_MARKS = str.maketrans({"．": ".", "－": "-", "−": "-", "＋": "+", "／": "/", "⁄": "/"})
_WIDE_THOUSANDS = re.compile(r"(?<=[０-９])，(?=[０-９]{3}(?![０-９]))")
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
# A sign counts where a number can begin, not in 5-3 or 2024-05; an exponent has at most three digits.
_NUMBER = re.compile(
    rf"(?P<sign>(?<![A-Za-z_\d.)])[-+](?=[$€£¥￥]?[\d.]))?[$€£¥￥]?(?P<number>{_PLAIN})"
    r"(?P<exponent>[eE][-+]?\d{1,3}(?!\w))?(?:\s?/\s?(?P<under>\d+))?"
)


class Config(BaseModel):
    """Options of the metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    relative_tolerance: float = Field(
        default=0.0, ge=0, lt=1, description="largest difference that still counts, as a share of the reference"
    )


def last_number(text: str) -> Fraction | None:
    """The last number of ``text``, or the first one after the last ``####``; None when there is none.

    Reads thousands commas, signs, decimals, exponents, fractions (2/6) and full-width digits. A unit or a percent sign
    is not read: 50 % is 50.
    """
    plain = _WIDE_THOUSANDS.sub(",", text).translate(_MARKS)
    _, mark, final = plain.rpartition(FINAL)
    found = list(_NUMBER.finditer(final if mark else plain))
    if not found:
        return None
    match = found[0] if mark else found[-1]
    # Decimal, unlike int, reads digits without a bound on their number
    value = Fraction(Decimal(match["number"].replace(",", "") + (match["exponent"] or "")))
    under = Fraction(Decimal(match["under"])) if match["under"] else Fraction(1)
    if under == 0:
        return None
    return (-value if match["sign"] == "-" else value) / under


def check(references: Sequence[Sequence[str]], config: Config) -> None:
    """Finds references without a number.

    Raises:
        DataError: a reference has no number.
    """
    fix = "choose another metric, or leave the row out"
    problems = [
        Problem(f"metric 'numeric_answer' finds no number in the reference {text[:60]!r}", f"evaluation row {row}", fix)
        for row, right in enumerate(references, start=1)
        for text in right
        if last_number(text) is None
    ]
    raise_all(DataError, problems)


def score(predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[float]:
    """1.0 for each prediction whose number equals one of its references', exactly or within the tolerance, else 0.0.

    Raises:
        DataError: a reference has no number.
    """
    check(references, config)
    tolerance = Fraction(config.relative_tolerance)

    def near(prediction: str, reference: str) -> float:
        given, wanted = last_number(prediction), last_number(reference)
        return float(given is not None and wanted is not None and abs(given - wanted) <= tolerance * abs(wanted))

    return best(near, predictions, references)
