"""A recipe's source without a recipe, and shorthands to read it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tunekit.core.types import BadRow, Row, RowError
from tunekit.data.detect import detect, to_example
from tunekit.data.sources import iter_rows


@dataclass(frozen=True)
class Source:
    path: str
    split: str | None = None
    name: str | None = None
    revision: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    encoding: str = "utf-8"
    container: str = "auto"
    text_unit: str = "line"


def read(base: Path, path: str, **options) -> list[Row | BadRow]:
    """All rows, good and bad."""
    return list(iter_rows(Source(path, **options), 0, base))


def good(base: Path, path: str, **options) -> dict[int, Mapping]:
    """Line -> value of a file that must have no bad row."""
    rows = read(base, path, **options)
    assert not [row for row in rows if isinstance(row, BadRow)]
    return {row.origin.line: row.value for row in rows}


def write(folder: Path, name: str, content: str | bytes) -> str:
    """Writes a file and returns its name."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def convert(rows, name=None, columns=None):
    """(format, line -> example, line -> reason)."""
    name = name or detect(list(rows.values())[:50], columns)
    examples, refused = {}, {}
    for line, row in rows.items():
        try:
            examples[line] = to_example(name, row, columns or {})
        except RowError as error:
            refused[line] = str(error)
    return name, examples, refused


def str_of(value) -> str:
    """A value as readable JSON."""
    return json.dumps(value, ensure_ascii=False)


def arrow(kind) -> bytes:
    """A table of two rows as an Arrow file or stream."""
    import pyarrow as pa

    table = pa.table({"a": ["x", "y"]})
    sink = pa.BufferOutputStream()
    with kind(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def parquet() -> bytes:
    """The same as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": ["x", "y"]}), sink)
    return sink.getvalue().to_pybytes()
