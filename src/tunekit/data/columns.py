"""Where a format finds its fields in a row: by its own names, or by the recipe's ``columns`` (dotted paths)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.core.registry import nearest
from tunekit.core.types import RowError
from tunekit.data.readers.record import kind

RESERVED = ("rows", "header")
"""Keys of ``columns`` that belong to the reader, not to a format."""

_MISSING = object()


def pick(row: Mapping[str, Any], path: str) -> Any:
    """The value at ``path``: a column, or a dotted path into it such as ``instances.0.output``.

    Raises:
        RowError: nothing is there; the nearest existing column is named.
    """
    if path in row:
        return row[path]
    value: Any = row
    walked: list[str] = []
    for part in path.split("."):
        inner = _step(value, part)
        if inner is _MISSING:
            raise RowError(_nothing(path, walked, part, value))
        value = inner
        walked.append(part)
    return value


def _step(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part, _MISSING)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and part.isdigit():
        return value[int(part)] if int(part) < len(value) else _MISSING
    return _MISSING


def _nothing(path: str, walked: Sequence[str], part: str, value: Any) -> str:
    where = f"column '{path}': " if walked else ""
    if not walked or isinstance(value, Mapping):
        close = nearest(part, value)
        names = f"did you mean '{close}'?" if close else f"there are {', '.join(map(str, value)) or 'none'}"
        return f"{where}no column '{part}'; {names}"
    inside = ".".join(walked)
    if part.isdigit() and isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return f"{where}'{inside}' has {len(value)} items, none with index {part}"
    return f"{where}'{inside}' is {kind(value)}, nothing is inside it under '{part}'"


def field(row: Mapping[str, Any], columns: Mapping[str, str], name: str, defaults: Sequence[str]) -> Any:
    """A format's field: what ``columns`` names, else the first default column that exists, else None.

    Raises:
        RowError: the column that the recipe names is missing.
    """
    if name in columns:
        return pick(row, columns[name])
    return next((row[column] for column in defaults if column in row), None)


def required(row: Mapping[str, Any], columns: Mapping[str, str], name: str, defaults: Sequence[str]) -> Any:
    """The same, for a field that a row must have.

    Raises:
        RowError: no such column, or null in it.
    """
    value = field(row, columns, name, defaults)
    if value is None:
        column = shown(row, columns, name, defaults)
        if column in row or name in columns:
            raise RowError(f"column '{column}' is null")
        raise RowError(_nothing(column, (), column, row))
    return value


def shown(row: Mapping[str, Any], columns: Mapping[str, str], name: str, defaults: Sequence[str]) -> str:
    """The column that a field comes from, for messages."""
    return columns.get(name) or next((column for column in defaults if column in row), defaults[0])


def text_of(value: Any, where: str) -> str:
    """``value`` itself, which must be text.

    Raises:
        RowError: it is something else; what it is is said.
    """
    if not isinstance(value, str):
        raise RowError(f"{where}: text expected, found {kind(value)}")
    return value


def filled_text(row: Mapping[str, Any], columns: Mapping[str, str], name: str, defaults: Sequence[str]) -> str:
    """A required field that is text and more than white space, unchanged.

    Raises:
        RowError: it is missing, null, something else, or empty.
    """
    where = f"column '{shown(row, columns, name, defaults)}'"
    text = text_of(required(row, columns, name, defaults), where)
    if not text.strip():
        raise RowError(f"{where} is empty")
    return text


def optional_text(row: Mapping[str, Any], columns: Mapping[str, str], name: str, defaults: Sequence[str]) -> str:
    """A field that may be missing, null or empty (all three give an empty text).

    Raises:
        RowError: it is something else than text.
    """
    value = field(row, columns, name, defaults)
    return "" if value is None else text_of(value, f"column '{shown(row, columns, name, defaults)}'")
