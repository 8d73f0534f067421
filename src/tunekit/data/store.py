"""Prepared examples on disk: Arrow files that are written as a stream and read memory-mapped."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tunekit.core.types import IGNORED

if TYPE_CHECKING:
    import pyarrow as pa

FLUSH = 1000


def row_schema() -> pa.Schema:
    """One fitted example: ``number`` is its row in the ledger; ``turn_ends`` are token positions.

    The last three are for other material than texts. ``input_ids`` are a shared beginning and then the tokens of each
    branch, as many as ``branches`` says (none for a prompt). ``score`` is the margin of a pair, or 1 for a good and 0
    for a bad answer. ``columns`` are the values of a prompt's row as JSON.
    """
    import pyarrow as pa

    ids, text = pa.list_(pa.int32()), pa.string()
    return pa.schema([
        ("number", pa.int32()), ("length", pa.int32()), ("input_ids", ids), ("labels", ids), ("turn_ends", ids),
        ("truncated", pa.bool_()), ("prompt_tokens", pa.int32()), ("prompt", text), ("reference", text),
        ("branches", ids), ("score", pa.float32()), ("columns", text),
    ])  # fmt: skip


def final_schema() -> pa.Schema:
    """What training reads: ``rows`` are ledger rows, ``starts`` the first positions of the packed examples.

    ``position_ids`` is null for texts unless they are packed and isolated: then it restarts at each of them. Each
    branch of a group goes on from the end of the shared beginning.
    """
    import pyarrow as pa

    ids = pa.list_(pa.int32())
    schema = row_schema().remove(0)
    return pa.schema([("rows", ids), ("starts", ids), ("position_ids", ids), *schema])


class ArrowWriter:
    """Writes rows to an Arrow stream file, a thousand at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema, self.pending = path, schema, list[Mapping[str, Any]]()

    def __enter__(self) -> ArrowWriter:
        import pyarrow as pa

        self._file = pa.OSFile(str(self.path), "wb")
        self._stream = pa.ipc.new_stream(self._file, self.schema)
        return self

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds one row; it must have every column of the schema."""
        self.pending.append(row)
        if len(self.pending) >= FLUSH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        self._stream.write_batch(pa.RecordBatch.from_pylist(self.pending, schema=self.schema))
        self.pending.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.pending:
            self._flush()
        self._stream.close()
        self._file.close()


class RowFile:
    """Random access to an Arrow stream file, memory-mapped."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.table: pa.Table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        batches = self.table.to_batches()
        self._starts = [0, *itertools.accumulate(batch.num_rows for batch in batches)]
        self._readers = [
            {name: _reader(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
            for batch in batches
        ]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> list[Any]:
        """A whole column as plain values."""
        values: list[Any] = self.table[name].to_pylist()
        return values

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch = bisect_right(self._starts, index) - 1
        at = index - self._starts[batch]
        return {name: value(at) for name, value in self._readers[batch].items()}


def _reader(column: pa.Array) -> Callable[[int], Any]:
    """Gives one value of a column, through numpy's view of it where there is one: Arrow's own values are slow."""
    import pyarrow as pa

    if column.null_count == len(column):
        return lambda index: None
    if pa.types.is_list(column.type) and not column.null_count:
        offsets, values = column.offsets.to_numpy(), column.values.to_numpy()
        return lambda index: values[offsets[index] : offsets[index + 1]].tolist()
    if pa.types.is_integer(column.type) and not column.null_count:
        number: Callable[[int], Any] = column.to_numpy().item
        return number
    return lambda index: column[index].as_py()


def join(rows: Sequence[Mapping[str, Any]], isolated: bool) -> dict[str, Any]:
    """One final example of the rows that share it.

    Args:
        rows: fitted examples, in their order.
        isolated: whether each is to see only itself (positions restart), or also those before it.
    """
    assert len(rows) == 1 or all(row.get("branches") is None for row in rows), "groups are not packed"
    starts, at = [], 0
    ids: list[int] = []
    labels: list[int] = []
    ends: list[int] = []
    positions: list[int] = []
    apart = isolated and len(rows) > 1
    for row in rows:
        starts.append(at)
        ids += row["input_ids"]
        labels += row["labels"]
        labels[at] = IGNORED  # nothing precedes a first token: it cannot be predicted
        ends += [at + end if end >= 0 else end for end in row["turn_ends"]]
        if apart:
            positions += range(len(row["input_ids"]))
        at = len(ids)
    branches = rows[0].get("branches")
    if branches is not None:
        positions = branched(len(ids), branches)
    return {
        "rows": [row["number"] for row in rows],
        "starts": starts,
        "position_ids": positions if apart or branches is not None else None,
        "length": len(ids),
        "input_ids": ids,
        "labels": labels,
        "turn_ends": ends,
        "truncated": any(row["truncated"] for row in rows),
        "prompt_tokens": rows[0]["prompt_tokens"],
        "prompt": rows[0]["prompt"],
        "reference": rows[0]["reference"],
        "branches": branches,
        "score": rows[0].get("score"),
        "columns": rows[0].get("columns"),
    }


def branched(length: int, branches: Sequence[int]) -> list[int]:
    """Positions of a beginning and of branches that each go on from its end, ``length`` tokens in all."""
    shared = length - sum(branches)
    return [*range(shared), *(position for size in branches for position in range(shared, shared + size))]
