"""Texts made of a row's columns: ``Question: {question}``; a name without braces is the column itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator

from tunekit.core.errors import DataError, UserError
from tunekit.core.registry import did_you_mean
from tunekit.evaluate.contract import Row

_PART = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")
_MISSING = object()
BRACES = "write {column} for a column, {{ and }} for braces that are text"


def _well_formed(text: str) -> str:
    if any(part[0] in ("{", "}") for part in _PART.finditer(text)):
        raise ValueError(f"a brace in {text!r} has no partner; {BRACES}")
    return text


def _a_column(name: str) -> str:
    if is_template(name):
        raise ValueError(f"the name of a column, not a text with braces: {name!r}")
    return name


Template = Annotated[str, AfterValidator(_well_formed)]
"""A config field whose ``{column}`` parts are replaced row by row."""

Column = Annotated[str, AfterValidator(_a_column)]
"""A config field that names a column; dots reach into it."""


def is_template(text: str) -> bool:
    """Whether ``text`` has braces; without them it names a column where a field takes both."""
    return "{" in text or "}" in text


def fill(text: str, row: Row) -> str:
    """``text`` with each ``{column}`` replaced by the row's value; ``{{`` and ``}}`` are braces.

    Raises:
        DataError: the row has no such column, or it holds no plain text or number.
        UserError: a brace has no partner.
    """
    return _replaced(text, lambda name: text_of(column(row, name), name, row.where))


def blank(text: str, filler: str) -> str:
    """``text`` with ``filler`` in the place of every column.

    Raises:
        UserError: a brace has no partner.
    """
    return _replaced(text, lambda _: filler)


def _replaced(text: str, value: Any) -> str:
    def one(part: re.Match[str]) -> str:
        if part[1] is not None:
            return str(value(part[1]))
        if len(part[0]) == 1:
            raise UserError(f"a brace in {text!r} has no partner", fix=BRACES)
        return part[0][0]

    return _PART.sub(one, text)


def column(row: Row, name: str) -> Any:
    """A row's value; a name with dots reaches into it, ``answers.text.0``, unless a column is called just so.

    Raises:
        DataError: there is none; the nearest name is given.
    """
    if name in row.values:
        return row.values[name]
    value: Any = row.values
    walked = ""
    for part in name.split("."):
        inner = _inside(value, part)
        if inner is _MISSING:
            if isinstance(value, Mapping):
                fix = did_you_mean(name, [f"{walked}{key}" for key in value])
            elif isinstance(value, Sequence) and not isinstance(value, str):
                fix = f"'{walked[:-1]}' is a list of {len(value)}: its items are {walked}0, {walked}1, ..."
            else:
                fix = f"'{walked[:-1]}' has nothing inside it"
            raise DataError(f"no column '{name}'", where=row.where, fix=fix)
        value, walked = inner, f"{walked}{part}."
    return value


def _inside(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part, _MISSING)
    if isinstance(value, list | tuple) and part.isdecimal() and int(part) < len(value):
        return value[int(part)]
    return _MISSING


def value(text: str, row: Row) -> Any:
    """What a field that takes a template or a column's name stands for in a row.

    Raises:
        DataError, UserError: as `fill` and `column` do.
    """
    return fill(text, row) if is_template(text) else column(row, text)


def text_of(found: Any, name: str, where: str) -> str:
    """A column's value as text: numbers as they are written, truth values as JSON has them.

    Raises:
        DataError: it is missing (null), a list or an object.
    """
    if isinstance(found, str):
        return found
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, int | float):
        return str(found)
    if found is None:
        raise DataError(f"column '{name}' is empty (null)", where=where, fix="fill it, or leave the row out")
    kind = "a list" if isinstance(found, list | tuple) else "an object" if isinstance(found, Mapping) else "no text"
    raise DataError(
        f"column '{name}' holds {kind}, not text or a number",
        where=where,
        fix=f"name what is inside it, such as {name}.0 or {name}.text",
    )
