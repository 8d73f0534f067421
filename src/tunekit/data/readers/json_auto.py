"""Files named .json or .jsonl: a look at the beginning tells a JSON list from JSON Lines, whatever the name says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain

from tunekit.data.readers import jsonl, jsonlist
from tunekit.data.readers.bytes import text_blocks
from tunekit.data.readers.record import InputFile, Record
from tunekit.data.strictjson import StrictJson

PEEK = 1 << 22
ENOUGH_LINES = 20


def read(file: InputFile) -> Iterator[Record]:
    """Yields the records as `jsonl.read` or `jsonlist.read` does.

    A file named .json that holds one object on one line is refused, as the object may be a wrapper around the rows.

    Raises:
        DataError: as the two readers.
    """
    if not file.auto:
        return jsonl.read(file) if file.container == "jsonl" and file.rows is None else jsonlist.read(file)
    if file.rows is not None or not _is_lines(file):
        return jsonlist.read(file)
    return jsonl.read(file) if file.container == "jsonl" else _several(file)


def _several(file: InputFile) -> Iterator[Record]:
    records = jsonl.read(file)
    first, second = next(records, None), next(records, None)
    if first is not None and second is None and isinstance(first[1], Mapping):
        raise jsonlist.single_object(file, first[1])
    return chain((record for record in (first, second) if record is not None), records)


def _is_lines(file: InputFile) -> bool:
    """True for JSON Lines; False for one list or one object over several lines, and for what is no JSON."""
    text, whole = _beginning(file)
    first, _, rest = text.partition("\n")
    if not text.startswith(("[", "{")):
        return file.container == "jsonl"
    if text.startswith("["):
        return _complete(first) and bool(rest.strip())
    if file.container == "jsonl":
        return True
    if _complete(first) or (not rest and not whole):
        return True
    second = next((line for line in rest.split("\n") if line.strip()), "")
    opened = first.rstrip().endswith(("{", "[", ",", ":"))
    return not opened and second.startswith("{") and (_complete(second) or not second)


def _beginning(file: InputFile) -> tuple[str, bool]:
    """The first lines after leading white space (some `PEEK` characters at most), and whether they are all."""
    text = ""
    for block in text_blocks(file):
        text = (text + block).lstrip() if not text else text + block
        if len(text) >= PEEK or text.count("\n") >= ENOUGH_LINES:
            return text, False
    return text, True


def _complete(line: str) -> bool:
    body = line.strip(jsonl.BLANK)
    try:
        return StrictJson().decode(body)[1] == len(body)
    except json.JSONDecodeError:
        return False
