"""From a file's bytes to text: decompression, decoding with the place of the first wrong byte, and physical lines."""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterator
from typing import IO

from tunekit.core.errors import DataError, MachineError, UserError
from tunekit.core.registry import nearest
from tunekit.data.readers.guess import advice
from tunekit.data.readers.record import InputFile

BLOCK = 1 << 16
SAMPLE = 1 << 16
COMMON_ENCODINGS = ("utf-8", "gbk", "gb18030", "big5", "shift_jis", "euc_kr", "cp1251", "cp1252", "latin-1", "utf-16")


def raw_blocks(file: InputFile) -> Iterator[bytes]:
    """The file's bytes in blocks, decompressed when its name ends in ``.gz`` or ``.zst``.

    Raises:
        DataError: the compressed stream is damaged or ends too early.
        MachineError: the operating system does not let us read it.
    """
    try:
        with file.path.open("rb") as handle:
            suffix = file.path.suffix.lower()
            if suffix == ".gz":
                yield from _gunzip(handle, file)
            elif suffix == ".zst":
                yield from _unzstd(handle, file)
            else:
                while block := handle.read(BLOCK):
                    yield block
    except OSError as error:
        raise MachineError(f"cannot read the file: {error.strerror or error}", where=file.shown) from error


def _gunzip(handle: IO[bytes], file: InputFile) -> Iterator[bytes]:
    import gzip

    done = 0
    try:
        with gzip.GzipFile(fileobj=handle) as stream:
            while block := stream.read(BLOCK):
                done += len(block)
                yield block
    except EOFError as error:
        raise _truncated(file, "gzip", done) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        fix = "rename it if it is not compressed; otherwise fetch it again"
        raise DataError(f"damaged gzip data after {done} bytes: {error}", where=file.shown, fix=fix) from error


def _unzstd(handle: IO[bytes], file: InputFile) -> Iterator[bytes]:
    import zstandard

    done, fed, frame = 0, False, zstandard.ZstdDecompressor().decompressobj()
    try:
        while data := handle.read(BLOCK):
            while data:
                if frame.eof:
                    frame, fed = zstandard.ZstdDecompressor().decompressobj(), False
                block, fed = frame.decompress(data), True
                data = frame.unused_data if frame.eof else b""
                done += len(block)
                if block:
                    yield block
    except zstandard.ZstdError as error:
        fix = "rename it if it is not compressed; otherwise fetch it again"
        raise DataError(f"damaged zstd data after {done} bytes: {error}", where=file.shown, fix=fix) from error
    if fed and not frame.eof:
        raise _truncated(file, "zstd", done)


def _truncated(file: InputFile, kind: str, done: int) -> DataError:
    what = f"the {kind} file is cut off (it breaks off after {done} decompressed bytes)"
    return DataError(what, where=file.shown, fix="fetch or write the file again")


def check_encoding(name: str) -> None:
    """Refuses a name that is no text encoding.

    Raises:
        UserError: unknown; the nearest known name is given.
    """
    try:
        "a".encode(name)
        codecs.getincrementaldecoder(name)
    except (LookupError, UnicodeError) as error:
        close = nearest(name.lower(), COMMON_ENCODINGS)
        fix = f"did you mean '{close}'?" if close else f"for example: {', '.join(COMMON_ENCODINGS)}"
        raise UserError(f"'{name}' is not a text encoding", fix=fix) from error


def text_blocks(file: InputFile) -> Iterator[str]:
    """The file's text in blocks, without a leading byte-order mark; line ends stay as they are.

    Raises:
        DataError: the file is empty or blank, or a byte does not fit the encoding (line, offset and a guess are given).
    """
    check_encoding(file.encoding)
    decoder = codecs.getincrementaldecoder(file.encoding)()
    read, lines, blank = 0, 1, True
    for block in raw_blocks(file):
        if read == 0 and _is_utf8(file.encoding) and block.count(0) > len(block) // 5:
            raise _undecodable(file, "NUL bytes all over: this is not UTF-8 text", 1, 0)
        try:
            text = decoder.decode(block)
        except UnicodeError as error:
            raise _wrong_byte(file, error, read + len(block), lines) from error
        text = text.removeprefix("\ufeff") if read == 0 else text
        read, lines, blank = read + len(block), lines + text.count("\n"), blank and not text.strip()
        yield text
    try:
        decoder.decode(b"", final=True)
    except UnicodeError as error:
        raise _wrong_byte(file, error, read, lines) from error
    if blank:
        what = "the file is empty" if read == 0 else "the file holds nothing but white space"
        raise DataError(what, where=file.shown, fix="take it out of `data`, or write it again")


def _is_utf8(name: str) -> bool:
    return codecs.lookup(name).name == "utf-8"


def _wrong_byte(file: InputFile, error: UnicodeError, read: int, lines: int) -> DataError:
    """``read`` counts the bytes up to the end of the block in which ``error`` arose; ``lines`` the lines before it."""
    if not isinstance(error, UnicodeDecodeError):
        fix = "name the byte order: `encoding: utf-16-le` or `encoding: utf-16-be`"
        return DataError(f"not {file.encoding}: {error}", where=f"{file.shown}:{lines}", fix=fix)
    good = error.object[: error.start].decode(file.encoding, "replace")
    offset = read - len(error.object) + error.start
    what = f"byte {offset} (0x{error.object[error.start]:02x}) is not {file.encoding.upper()}"
    return _undecodable(file, what, lines + good.count("\n"), offset)


def _undecodable(file: InputFile, what: str, line: int, offset: int) -> DataError:
    """Reads the file again, up to some way behind ``offset``, for a guess at what it may be."""
    head, sample, position = b"", bytearray(), 0
    named = not _is_utf8(file.encoding)
    begin = 0 if named else offset
    for block in raw_blocks(file):
        head = head or block[:8]
        sample += block[max(0, begin - position) :] if position + len(block) > begin else b""
        position += len(block)
        if len(sample) >= SAMPLE:
            break
    fix = advice(head, bytes(sample[:SAMPLE]), named=named)
    return DataError(what, where=f"{file.shown}:{line}", fix=fix)


def numbered_lines(file: InputFile) -> Iterator[tuple[int, str]]:
    r"""Physical lines with their 1-based numbers, without the ``\n``.

    Only ``\n`` ends a line: ``\r``, U+2028, form feeds and the like stay in the text. A line may have any length.

    Raises:
        DataError: as `text_blocks`, and for a file whose lines end in bare carriage returns.
    """
    lines = enumerate(_split(text_blocks(file)), start=1)
    first, second = next(lines, None), next(lines, None)
    if first is not None and second is None and "\r" in first[1].rstrip("\r"):
        fix = "write it with line feeds, for example: tr '\\r' '\\n' < old > new"
        raise DataError("the lines end in bare carriage returns", where=f"{file.shown}:1", fix=fix)
    yield from (line for line in (first, second) if line is not None)
    yield from lines


def _split(blocks: Iterator[str]) -> Iterator[str]:
    rest: list[str] = []
    for block in blocks:
        head, *tail = block.split("\n")
        rest.append(head)
        if tail:
            yield "".join(rest)
            yield from tail[:-1]
            rest = [tail[-1]]
    last = "".join(rest)
    if last:
        yield last
