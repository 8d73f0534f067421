"""Solved examples before each prompt, and the small local files that tasks read beside the evaluation rows."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from tunekit.core.errors import DataError, Problem, UserError
from tunekit.core.registry import did_you_mean, nearest
from tunekit.evaluate.contract import Row
from tunekit.evaluate.template import Template, fill

FOLDER = "folder"
"""Key of pydantic's validation context: where relative paths of a config begin, before the working folder."""


def _placed(path: str, info: ValidationInfo) -> str:
    folder = (info.context or {}).get(FOLDER)
    if folder is None or Path(path).is_absolute():
        return path
    places = [(Path(folder) / path).absolute(), Path(path).absolute()]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ValueError(_nowhere(path, places))
    return str(found)


def _nowhere(path: str, places: Sequence[Path]) -> str:
    return f"no file '{path}'; looked for {' and '.join(dict.fromkeys(map(str, places)))}"


LocalFile = Annotated[str, AfterValidator(_placed)]
"""A path that validation with a `FOLDER` in its context makes absolute."""


class FewShot(BaseModel):
    """Examples with their answers, put before every prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: LocalFile = Field(min_length=1, description="a local file of examples: jsonl, json, csv or tsv")
    count: int | None = Field(default=None, ge=1, description="so many examples; default: all of the file")
    seed: int | None = Field(default=None, description="draw the examples with this seed; default: the first ones")
    between: str = Field(default="\n\n", description="what stands after each example")
    header: str | None = Field(default=None, description='column names of a csv or tsv without a header: "a, b"')
    rows: str | None = Field(default=None, description="key of a json object under which the examples are listed")


def read(block: FewShot) -> list[Row]:
    """The examples of a block, in the order in which they stand before a prompt.

    Raises:
        UserError: the file is missing, of another kind, or has fewer examples than ``count``.
        DataError: it cannot be read.
    """
    rows = list(_rows(block))
    count = len(rows) if block.count is None else block.count
    if not rows:
        raise DataError("no examples in this file", where=block.path, fix="leave few_shot out, or name another file")
    if count > len(rows):
        raise UserError(f"few_shot.count is {count}, but {block.path} has {len(rows)} examples", fix="lower the count")
    return rows[:count] if block.seed is None else random.Random(block.seed).sample(rows, count)


def shots(block: FewShot | None, prompt: Template, target: Template, separator: str) -> str:
    """What stands before every prompt: each example's prompt, the separator, its answer; empty without a block.

    Raises:
        UserError, DataError: as `read` does, and for a column that an example lacks.
    """
    rows = read(block) if block is not None else []
    return joined(block, [(fill(prompt, row), fill(target, row)) for row in rows], separator)


def joined(block: FewShot | None, pairs: Iterable[tuple[str, str]], separator: str) -> str:
    """The same of prompts and answers that are written already."""
    between = block.between if block is not None else ""
    return "".join(f"{prompt}{separator}{target}{between}" for prompt, target in pairs)


def seen(examples: Iterable[tuple[str, str]], asked: Iterable[tuple[str, str]]) -> list[Problem]:
    """Rows that stand among the examples, so that the model reads their answer before it is asked.

    Args:
        examples: prompt and place of every example.
        asked: prompt and place of every row to evaluate.
    """
    known = {prompt.strip(): where for prompt, where in examples}
    return [
        Problem(
            "this row is one of the examples that stand before its prompt: the model would read the answer",
            where,
            f"take the examples from other rows (the example is {known[prompt.strip()]})",
        )
        for prompt, where in asked
        if prompt.strip() in known
    ]


def text_file(path: str) -> str:
    """A local file of UTF-8 text, without its byte-order mark; line ends are newlines.

    Raises:
        UserError: there is no such file.
        DataError: it is not UTF-8.
    """
    place = Path(path)
    if not place.is_file():
        siblings = [item.name for item in place.parent.iterdir()] if place.parent.is_dir() else []
        close = nearest(place.name, siblings)
        fix = f"did you mean '{place.parent / close}'?" if close else "correct the path"
        raise UserError(_nowhere(path, [place.absolute()]), fix=fix)
    try:
        return place.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text: byte {error.start}", where=path, fix="save the file as UTF-8") from None


def beside(items: Sequence[Row], path: str) -> dict[int, str]:
    """The lines of a text file that lies beside the data, one a row, by the row's identity.

    As many lines as rows: in their order. Fewer rows, because some were drawn: by the line in each row's place, which
    csv does not have, for its records may have several.

    Raises:
        UserError: there is no such file.
        DataError: rows and lines do not go together.
    """
    lines = [line.strip() for line in text_file(path).splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if len(lines) == len(items):
        return {id(row): line for row, line in zip(items, lines)}
    numbers = [re.fullmatch(r"(.*):(\d+)", row.where) for row in items]
    known = [int(n[2]) for n in numbers if n and not n[1].lower().endswith((".csv", ".tsv"))]
    if len(known) < len(items) or len(set(known)) < len(known) or max(known, default=0) > len(lines):
        fix = "give one answer a line, in the order of the rows of one file"
        raise DataError(f"{len(lines)} answers for {len(items)} rows", where=path, fix=fix)
    return {id(row): lines[number - 1] for row, number in zip(items, known)}


def _rows(block: FewShot) -> Iterator[Row]:
    kind = Path(block.path).suffix.lower()
    text = text_file(block.path)
    if kind in (".jsonl", ".json"):
        values = _listed(text, block) if kind == ".json" else _lines(text, block.path)
        for number, found in values:
            if not isinstance(found, dict):
                raise DataError("an object with columns is expected", where=f"{block.path}:{number}")
            yield Row(found, f"{block.path}:{number}")
    elif kind in (".csv", ".tsv"):
        yield from _table(text, kind, block)
    else:
        raise UserError(f"'{block.path}' is none of jsonl, json, csv, tsv", fix="save the examples as jsonl")


def _listed(text: str, block: FewShot) -> list[tuple[int, Any]]:
    """The objects of a json file with their numbers; such a file may hold json lines."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _lines(text, block.path)
        raise DataError(f"not JSON: {error.msg}", where=f"{block.path}:{error.lineno}") from None
    if isinstance(found, dict) and block.rows is not None:
        if block.rows not in found:
            raise UserError(f"no key '{block.rows}' in {block.path}", fix=did_you_mean(block.rows, found))
        found = found[block.rows]
    if not isinstance(found, list):
        fix = "name the key that holds the examples: few_shot.rows"
        raise DataError("a list of examples is expected", where=block.path, fix=fix)
    return list(enumerate(found, start=1))


def _lines(text: str, path: str) -> list[tuple[int, Any]]:
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                found.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                raise DataError(f"not JSON: {error.msg}", where=f"{path}:{number}") from None
    return found


def _table(text: str, kind: str, block: FewShot) -> Iterator[Row]:
    """csv as RFC 4180 has it; tsv has no quotes."""
    records = _quoted(text, block.path) if kind == ".csv" else _tabbed(text)
    if block.header is None:
        names = next(records, (0, []))[1]
    else:
        names = [name.strip() for name in block.header.split(",")]
    for number, fields in records:
        if len(fields) != len(names):
            what = f"{len(fields)} fields, but there are {len(names)} column names"
            raise DataError(what, where=f"{block.path}:{number}")
        yield Row(dict(zip(names, fields)), f"{block.path}:{number}")


def _tabbed(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line:
            yield number, line.split("\t")


def _quoted(text: str, path: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    before = 0
    try:
        for fields in reader:
            if fields:
                yield before + 1, fields
            before = reader.line_num
    except csv.Error as error:
        raise DataError(f"not csv: {error}", where=f"{path}:{before + 1}") from None
