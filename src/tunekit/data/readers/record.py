"""What a reader is given (a file and how to read it) and what it yields (numbered records)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class InputFile:
    """One local file and how it is to be read.

    Args:
        path: where it lies.
        shown: its name in messages and in the ledger.
        container: json, jsonl, csv, tsv, parquet, arrow or txt.
        encoding: of text containers.
        auto: the container was taken from the file's suffix, so json may turn out to be jsonl and the reverse.
        whole: a txt file is one row (otherwise each line is one).
        rows: the key of a top-level JSON object that holds the rows; ``*`` takes every value as a row.
        header: the column names of a csv or tsv file that has no header line.
    """

    path: Path
    shown: str
    container: str
    encoding: str = "utf-8"
    auto: bool = False
    whole: bool = False
    rows: str | None = None
    header: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that could not be read, with the reason in words; reading goes on after it."""

    reason: str


Record = tuple[int, Mapping[str, Any] | Unreadable]
"""A 1-based line or record number, and the row's columns or why there are none."""


def kind(value: Any) -> str:
    """What a value is, in the words of a user who looks at JSON: ``a list``, ``the number 5``, ``null``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {str(value)[:20]}"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    return f"a value of type {type(value).__name__}"
