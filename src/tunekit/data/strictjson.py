"""JSON as the standard has it: what Python's parser lets pass (NaN, repeated keys, half characters) is a fault."""

from __future__ import annotations

import json
import math
from typing import Any


class StrictJson:
    """A decoder that names the first fault of a value instead of guessing what was meant."""

    def __init__(self) -> None:
        self._faults: list[str] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float
        )

    def decode(self, text: str, start: int = 0) -> tuple[Any, int, str]:
        """The value that begins at ``start``, where it ends, and what is wrong with it (empty when nothing is).

        Raises:
            json.JSONDecodeError: it is not JSON; the error's ``pos`` tells where.
        """
        self._faults.clear()
        try:
            value, end = self._decoder.raw_decode(text, start)
        except RecursionError:
            raise json.JSONDecodeError("Nested too deeply", text, start) from None
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            raise json.JSONDecodeError(str(error).partition(";")[0], text, start) from None
        if not self._faults and _has_escape(text, start, end):
            self._surrogates(value)
        return value, end, self._faults[0] if self._faults else ""

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            double = next(name for i, name in enumerate(names) if name in names[:i])
            self._faults.append(f"the key '{double}' stands twice in one object")
        return found

    def _constant(self, name: str) -> float:
        self._faults.append(f"{name} is not a JSON value")
        return math.nan

    def _float(self, digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            self._faults.append(f"the number {digits[:20]} is too large")
        return value

    def _surrogates(self, value: Any) -> None:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            code = ord(error.object[error.start])
            self._faults.append(f"\\u{code:04x} is a lone surrogate (half of a character)")


def _has_escape(text: str, start: int, end: int) -> bool:
    return text.find("\\ud", start, end) >= 0 or text.find("\\uD", start, end) >= 0


def explain(error: json.JSONDecodeError) -> str:
    """Why a text is not JSON, in words; the column is counted from 1 within the text's line."""
    if error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string"):
        return "not JSON: it breaks off in the middle (cut off?)"
    found = error.doc[error.pos]
    if found == "\ufeff":
        return "not JSON: a byte-order mark in the middle of the file (files joined?)"
    if found == "\0":
        return f"not JSON: a NUL byte at column {error.colno}"
    return f"not JSON: {error.msg.lower()} at column {error.colno}"


def parse(text: str) -> Any:
    """The one JSON value that ``text`` holds.

    Raises:
        ValueError: the text is not JSON, or not strictly; the message says why.
    """
    body = text.strip(" \t\r\n")
    try:
        value, end, fault = StrictJson().decode(body)
    except json.JSONDecodeError as error:
        raise ValueError(explain(error)) from None
    if end != len(body):
        raise ValueError(f"not JSON: more content after the value, at column {end + 1}")
    if fault:
        raise ValueError(fault)
    return value
