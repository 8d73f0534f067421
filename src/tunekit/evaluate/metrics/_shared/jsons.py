"""Reading JSON strictly, and comparing it by value."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any


def read(text: str, number: Callable[[str], Any] = Decimal) -> Any:
    """The value of a JSON text.

    Args:
        text: by RFC 8259: NaN and Infinity, which Python writes, are no JSON.
        number: what a number is read as; Decimal reads all of them exactly.

    Raises:
        ValueError: it is no JSON, or nested too deeply or with too great a number to read.
    """
    try:
        return json.loads(text, parse_int=number, parse_float=number, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except ArithmeticError as error:
        raise ValueError("a number beyond all bounds") from error


def plain_number(text: str) -> int | float:
    """A whole number as int, any other as float."""
    value = Decimal(text)
    return int(value) if value == value.to_integral_value() and value.adjusted() < 300 else float(value)


def same(left: Any, right: Any) -> bool:
    """Whether two values are one: keys in any order, 1 as 1.0, but true is not 1.

    Neither is deeper than `read` allows, so the way down is not too deep either.
    """
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
