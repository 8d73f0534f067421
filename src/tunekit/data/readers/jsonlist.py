"""A JSON list of objects, element by element; or the rows inside a top-level object, where the recipe names the key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tunekit.core.errors import DataError
from tunekit.core.registry import did_you_mean
from tunekit.data.readers.bytes import text_blocks
from tunekit.data.readers.jsonl import refuse_other_text
from tunekit.data.readers.record import InputFile, Record, Unreadable, kind
from tunekit.data.strictjson import StrictJson, explain

SPACE = re.compile(r"[ \t\n\r]*")
MEND = "mend the file at this line, or fetch it again"
EDGE = 16
"""An error this near to the buffer's end may be a value (``-Infinity``, ``\\ud83d``) that is not read to its end."""


class Scanner:
    """Walks over a JSON text value by value and holds one element (and one block) in memory."""

    def __init__(self, file: InputFile) -> None:
        self.file = file
        self._blocks = text_blocks(file)
        self._decoder = StrictJson()
        self._buffer, self._at, self._lines, self._ended = "", 0, 1, False

    def _more(self) -> bool:
        """Reads on, at least as much again as is left unread (so that a long element costs linear time)."""
        if self._ended:
            return False
        self._lines += self._buffer.count("\n", 0, self._at)
        pieces = [self._buffer[self._at :]]
        wanted, got = len(pieces[0]), 0
        self._at = 0
        while got <= wanted:
            block = next(self._blocks, None)
            if block is None:
                self._ended = True
                break
            pieces.append(block)
            got += len(block)
        self._buffer = "".join(pieces)
        return got > 0

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            found = SPACE.match(self._buffer, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def take(self) -> str:
        """The same, and steps over it."""
        char = self.peek()
        self._at += len(char)
        return char

    def value(self) -> tuple[Any, str]:
        """The next value and its fault (empty when it has none).

        Raises:
            DataError: there is no whole value here.
        """
        self.peek()
        while True:
            try:
                value, end, fault = self._decoder.decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._buffer) - EDGE or error.msg.startswith("Unterminated string")
                if cut and self._more():
                    continue
                raise self.error(explain(error).partition(" at column")[0], error.pos) from error
            if end == len(self._buffer) and self._more():
                continue
            self._at = end
            return value, fault

    def error(self, what: str, at: int | None = None, fix: str = MEND) -> DataError:
        """An error at a place in the buffer; by default where the scanner stands."""
        line = self._lines + self._buffer.count("\n", 0, self._at if at is None else at)
        return DataError(what, where=f"{self.file.shown}:{line}", fix=fix)

    def beginning(self) -> str:
        """The next few characters, for messages."""
        self.peek()
        return self._buffer[self._at : self._at + 200]


def read(file: InputFile) -> Iterator[Record]:
    """Yields the elements, numbered from 1.

    Raises:
        DataError: not JSON, damaged or cut off; or a top-level object whose rows the recipe does not name.
    """
    scanner = Scanner(file)
    first = scanner.peek()
    if first == "[" and file.rows is not None:
        what = f"`columns: {{rows: {file.rows}}}` names a key, but the file holds a list"
        raise DataError(what, where=file.shown, fix="leave `rows` out")
    if first == "[":
        yield from _elements(scanner)
    elif first == "{" and file.rows is not None:
        yield from _inside(scanner, file.rows)
    elif first == "{":
        value, _ = scanner.value()
        if scanner.peek():
            fix = "write one object a line (JSON Lines, `container: jsonl`), or a list"
            raise scanner.error("more content after the first JSON object", fix=fix)
        raise single_object(file, value)
    else:
        refuse_other_text(file, scanner.beginning(), 1)
        value, _ = scanner.value()
        raise DataError(f"{kind(value)} where a list of objects is expected", where=file.shown, fix="write a JSON list")
    if scanner.peek():
        raise scanner.error("not JSON: more content after the end of the top-level value")


def _record(value: Any, fault: str) -> Mapping[str, Any] | Unreadable:
    if fault:
        return Unreadable(fault)
    return value if isinstance(value, dict) else Unreadable(f"{kind(value)} where an object is expected")


def _elements(scanner: Scanner) -> Iterator[Record]:
    scanner.take()
    if scanner.peek() == "]":
        scanner.take()
        return
    number = 0
    while True:
        number += 1
        yield number, _record(*scanner.value())
        if _closes(scanner, "]"):
            return


def _closes(scanner: Scanner, end: str) -> bool:
    """Steps over a comma or over the closing bracket; True for the latter."""
    found = scanner.peek()
    if found == "":
        raise scanner.error(f"not JSON: the file ends before the closing '{end}' (cut off?)")
    if found not in ("," + end):
        raise scanner.error(f"not JSON: ',' or '{end}' expected, found {found!r}")
    return scanner.take() == end


def _inside(scanner: Scanner, rows: str) -> Iterator[Record]:
    """The rows under one key of the top-level object, or (``*``) its values."""
    scanner.take()
    keys: list[str] = []
    number = 0
    done = scanner.peek() == "}" and scanner.take() == "}"
    while not done:
        key, _ = scanner.value()
        if not isinstance(key, str) or scanner.take() != ":":
            raise scanner.error("not JSON: a key and ':' expected")
        keys.append(key)
        if rows == "*":
            number += 1
            yield number, _record(*scanner.value())
        elif key == rows:
            if scanner.peek() != "[":
                raise scanner.error(f"the key '{key}' holds no list")
            yield from _elements(scanner)
        else:
            scanner.value()
        done = _closes(scanner, "}")
    if rows != "*" and rows not in keys:
        fix = did_you_mean(rows, keys)
        raise DataError(f"the top-level object has no key '{rows}'", where=scanner.file.shown, fix=fix)


def single_object(file: InputFile, value: Mapping[str, Any]) -> DataError:
    """The refusal of a file that is one JSON object, with the ways to read it."""
    lists = [key for key, item in value.items() if isinstance(item, list) and item and isinstance(item[0], dict)]
    if lists:
        fix = " or ".join(f"`columns: {{rows: {key}}}`" for key in lists[:4]) + " takes the list under that key as rows"
    elif value and all(isinstance(item, dict) for item in value.values()):
        fix = '`columns: {rows: "*"}` takes every value of the object as a row'
    else:
        fix = "write a list; if the object is one row, `container: jsonl` on one line"
    return DataError("the file holds one JSON object, not a list of rows", where=file.shown, fix=fix)
