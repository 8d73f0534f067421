"""csv (RFC 4180) and tsv (no quoting). A header names the columns; every field stays text, also ``None`` and ``NA``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from tunekit.core.errors import DataError
from tunekit.data.readers.bytes import numbered_lines
from tunekit.data.readers.record import InputFile, Record, Unreadable

LONGEST = 1 << 26
"""Characters of one csv record before an open quote is taken for a mistake."""

Fields = list[str] | Unreadable


def read(file: InputFile) -> Iterator[Record]:
    """Yields every record with the physical line on which it begins; lines that are quite empty are no records.

    Raises:
        DataError: no header, a header with missing or repeated names, or a quote that is never closed.
    """
    lines = ((number, line) for number, line in numbered_lines(file))
    records = _csv(file, lines) if file.container == "csv" else _tsv(lines)
    if file.header is None:
        first = next(records, None)
        assert first is not None, file.shown
        names = _header(file, *first)
    else:
        names = file.header
    for number, fields in records:
        yield number, _row(fields, names)


def _row(fields: Fields, names: tuple[str, ...]) -> dict[str, str] | Unreadable:
    if isinstance(fields, Unreadable):
        return fields
    if len(fields) != len(names):
        return Unreadable(f"{_count(len(fields))}, but the header has {len(names)}")
    if any("\0" in field for field in fields):
        return Unreadable("a NUL byte in a field")
    return dict(zip(names, fields))


def _count(n: int) -> str:
    return f"{n} field" if n == 1 else f"{n} fields"


def _tsv(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, Fields]]:
    for number, line in lines:
        bare = line.removesuffix("\r")
        if bare:
            yield number, bare.split("\t")


class _CsvRecord:
    """One record, fed line by line until its last quote is closed."""

    def __init__(self) -> None:
        self.fields: list[str] = []
        self.fault = ""
        self.length = 0
        self._piece: list[str] | None = None

    def feed(self, line: str) -> bool:
        """Takes one physical line; True when the record ends with it."""
        self.length += len(line)
        at = 0
        while True:
            if self._piece is None:
                if not line.startswith('"', at):
                    end = line.find(",", at)
                    if end < 0:
                        self.fields.append(line[at:].removesuffix("\r"))
                        return True
                    self.fields.append(line[at:end])
                    at = end + 1
                    continue
                self._piece, at = [], at + 1
            closed = self._quoted(line, at, self._piece)
            if closed < 0:
                return False
            self.fields.append("".join(self._piece))
            self._piece = None
            if line[closed:] in ("", "\r"):
                return True
            if line[closed] != ",":
                self.fault = f"text after the closing quote of field {len(self.fields)}"
                return True
            at = closed + 1

    def _quoted(self, line: str, at: int, piece: list[str]) -> int:
        """Takes quoted text from ``at`` on; where its closing quote ends, or -1 when it goes on in the next line."""
        while True:
            end = line.find('"', at)
            if end < 0:
                piece.append(line[at:] + "\n")
                return -1
            if not line.startswith('""', end):
                piece.append(line[at:end])
                return end + 1
            piece.append(line[at : end + 1])
            at = end + 2


def _csv(file: InputFile, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, Fields]]:
    for number, line in lines:
        if line in ("", "\r"):
            continue
        if '"' not in line:
            yield number, line.removesuffix("\r").split(",")
            continue
        record = _CsvRecord()
        for _, part in chain([(number, line)], lines):
            if record.feed(part):
                yield number, Unreadable(record.fault) if record.fault else record.fields
                break
            if record.length > LONGEST:
                raise _open_quote(file, number)
        else:
            raise _open_quote(file, number)


def _open_quote(file: InputFile, number: int) -> DataError:
    fix = 'close it, or double it where it is text (""); a file without quoting is `container: tsv`'
    return DataError("the quote opened in this record is never closed", where=f"{file.shown}:{number}", fix=fix)


def _header(file: InputFile, number: int, fields: Fields) -> tuple[str, ...]:
    """The column names that the first record holds.

    Raises:
        DataError: they are missing, empty, repeated, or look like data.
    """
    where = f"{file.shown}:{number}"
    no_header = 'without a header line, name the columns: `columns: {header: "a, b"}`'
    if isinstance(fields, Unreadable):
        raise DataError(f"the header cannot be read: {fields.reason}", where=where, fix=no_header)
    empty = [i for i, name in enumerate(fields, start=1) if not name.strip()]
    if empty:
        fix = "name it, or write the file without it (pandas: index=False)"
        raise DataError(f"column {empty[0]} of the header has no name", where=where, fix=fix)
    double = [name for i, name in enumerate(fields) if name in fields[:i]]
    if double:
        raise DataError(f"the header has the name '{double[0]}' twice", where=where, fix="rename one of them")
    if any("\n" in name or len(name) > 200 or "\0" in name for name in fields) or _all_numbers(fields):
        raise DataError(f"no header: the first line looks like data ({fields[0][:30]!r})", where=where, fix=no_header)
    other = next((c for c in ";\t|," if len(fields) == 1 and c in fields[0]), None)
    if other is not None:
        what = f"the header is one column, {fields[0][:60]!r}: are the fields separated by {other!r}?"
        fix = "write commas (csv) or tabs (tsv), or name the right one with `container: csv` or `container: tsv`"
        raise DataError(what, where=where, fix=fix)
    return tuple(fields)


def _all_numbers(fields: list[str]) -> bool:
    """True when every name is a number (but for 0, 1, 2, ..., as pandas names columns)."""
    digits = [name.strip().lstrip("-").replace(".", "", 1).isdigit() for name in fields]
    return all(digits) and fields != [str(i) for i in range(len(fields))]
