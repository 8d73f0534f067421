"""Parquet and Arrow (file and stream form), in batches of rows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import IO, Any

from tunekit.core.errors import DataError, MachineError
from tunekit.data.readers.bytes import raw_blocks
from tunekit.data.readers.record import InputFile, Record

BATCH = 1000
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def read(file: InputFile) -> Iterator[Record]:
    """Yields the rows, numbered from 1.

    Raises:
        DataError: not such a file, damaged, or with repeated column names.
        MachineError: no permission to read it.
    """
    import pyarrow as pa

    number = 0
    try:
        with _seekable(file) as handle:
            for batch in _batches(file, handle):
                _unique(file, batch.schema.names)
                batch.validate(full=True)  # wrong offsets in a damaged file would otherwise crash the process
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except PermissionError as error:
        raise MachineError(f"cannot read the file: {error.strerror}", where=file.shown) from error
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        what = f"not a readable {file.container} file (row {number + 1}): {reason}"
        fix = "write or fetch the file again, or name what it is (`container`)"
        raise DataError(what, where=file.shown, fix=fix) from error


def _batches(file: InputFile, handle: IO[bytes]) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    if file.container == "parquet":
        yield from parquet.ParquetFile(handle).iter_batches(batch_size=BATCH)
        return
    is_file = handle.read(6) == b"ARROW1"
    handle.seek(0)
    if is_file:
        with pa.ipc.open_file(handle) as table:
            for i in range(table.num_record_batches):
                yield from _slices(table.get_batch(i))
    else:
        _ended(file, handle)
        with pa.ipc.open_stream(handle) as stream:
            for batch in stream:
                yield from _slices(batch)


def _ended(file: InputFile, handle: IO[bytes]) -> None:
    """Refuses a stream without its end mark: cut between two batches, it would read as if it were whole."""
    size = handle.seek(0, 2)
    handle.seek(max(0, size - len(END_OF_STREAM)))
    if handle.read() != END_OF_STREAM:
        raise DataError("the Arrow stream has no end mark (cut off?)", where=file.shown, fix="write or fetch it again")
    handle.seek(0)


def _slices(batch: Any) -> Iterator[Any]:
    for start in range(0, batch.num_rows, BATCH):
        yield batch.slice(start, BATCH)


def _seekable(file: InputFile) -> IO[bytes]:
    """The file itself, or a temporary file with its decompressed bytes."""
    if file.path.suffix.lower() not in (".gz", ".zst"):
        return file.path.open("rb")
    copy: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    for block in raw_blocks(file):
        copy.write(block)
    copy.seek(0)
    return copy


def _unique(file: InputFile, names: list[str]) -> None:
    double = [name for i, name in enumerate(names) if name in names[:i]]
    if double:
        raise DataError(f"the column '{double[0]}' stands twice", where=file.shown, fix="rename one of them")
