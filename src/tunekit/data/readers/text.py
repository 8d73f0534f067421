"""Plain text: each line that is not blank is a row, or the whole file is one. The row's column is named ``text``."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.data.readers.bytes import numbered_lines, text_blocks
from tunekit.data.readers.record import InputFile, Record, Unreadable

NUL = Unreadable("a NUL byte in the text")


def read(file: InputFile) -> Iterator[Record]:
    r"""Yields the lines without their ends (``\n`` or ``\r\n``), or the whole text exactly as it stands."""
    if file.whole:
        text = "".join(text_blocks(file))
        yield 1, NUL if "\0" in text else {"text": text}
        return
    for number, line in numbered_lines(file):
        bare = line.removesuffix("\r")
        if "\0" in bare:
            yield number, NUL
        elif bare.strip():
            yield number, {"text": bare}
