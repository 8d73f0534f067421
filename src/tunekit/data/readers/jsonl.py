"""JSON Lines: one object a line. A line that does not hold one is an unreadable record, and reading goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from tunekit.core.errors import DataError
from tunekit.data.readers.bytes import numbered_lines
from tunekit.data.readers.record import InputFile, Record, Unreadable, kind
from tunekit.data.strictjson import StrictJson, explain

BLANK = " \t\r"
LOOK_AHEAD = 10


def read(file: InputFile) -> Iterator[Record]:
    """Yields every line that is not blank, with its physical number.

    Raises:
        DataError: none of the first lines even begins like JSON: this is another kind of file.
    """
    lines = ((number, line.strip(BLANK)) for number, line in numbered_lines(file))
    filled = ((number, line) for number, line in lines if line)
    head = list(islice(filled, LOOK_AHEAD))
    decoder = StrictJson()
    records = [(number, object_of(line, decoder)) for number, line in head]
    if head and not any(isinstance(value, Mapping) or line[0] in '{["' for (_, value), (_, line) in zip(records, head)):
        refuse_other_text(file, head[0][1], head[0][0])
    yield from records
    for number, line in filled:
        yield number, object_of(line, decoder)


def object_of(line: str, decoder: StrictJson) -> Mapping[str, Any] | Unreadable:
    """The object that one line holds, or why it holds none."""
    try:
        value, end, fault = decoder.decode(line)
    except json.JSONDecodeError as error:
        return Unreadable(explain(error))
    if end != len(line):
        return Unreadable(f"not JSON: more content after the first value, at column {end + 1}")
    if fault:
        return Unreadable(fault)
    return value if isinstance(value, dict) else Unreadable(f"{kind(value)} where an object is expected")


def refuse_other_text(file: InputFile, text: str, line: int) -> None:
    """Refuses a file that begins like no JSON at all.

    Raises:
        DataError: unless the text begins with a JSON value.
    """
    try:
        StrictJson().decode(text)
        return
    except json.JSONDecodeError:
        pass
    if text.startswith("version https://git-lfs"):
        what, fix = "a Git LFS pointer stands here instead of the data", "fetch the data: git lfs pull"
    else:
        what = f"not JSON: the file begins with {text[:30]!r}"
        fix = "name what the file is, for example `container: txt` or `container: csv`"
    raise DataError(what, where=f"{file.shown}:{line}", fix=fix)
