"""Sources -> rows -> examples: the format of each source is detected once, then every row is converted or refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tunekit.core.errors import DataError
from tunekit.core.types import BadRow, Example, Origin, Row, RowError
from tunekit.data.detect import detect, to_example
from tunekit.data.sources import fingerprint, iter_rows
from tunekit.recipe.schema import SourceBlock

PROBED = 50


@dataclass(frozen=True)
class ExampleReader:
    """Reads the examples of a recipe's sources.

    Args:
        base: folder where relative paths start (the recipe's); the working directory comes second.
    """

    base: Path

    def fingerprint(self, sources: Sequence[SourceBlock]) -> list[dict[str, Any]]:
        """What identifies the sources' content and reading: files with size and sha256, and the source's own keys."""
        return [
            {**source.model_dump(mode="json", exclude={"path"}), "files": fingerprint(source, self.base)}
            for source in sources
        ]

    def examples(self, sources: Sequence[SourceBlock]) -> Iterator[tuple[Origin, Example | str]]:
        """Each input row as an example, or as the reason why it is none; lazily, in the sources' order."""
        for index, source in enumerate(sources):
            rows = iter_rows(source, index, self.base)
            head = list(islice(rows, PROBED))
            name = source.format if source.format != "auto" else self._detect(source, head)
            for row in chain(head, rows):
                yield row.origin, self._convert(name, source, row)

    @staticmethod
    def _detect(source: SourceBlock, head: Sequence[Row | BadRow]) -> str:
        good = [row.value for row in head if isinstance(row, Row)]
        if good:
            return detect(good, source.columns)
        first = next((row for row in head if isinstance(row, BadRow)), None)
        if first is None:
            raise DataError("the source holds no rows", where=source.path, fix="check the file, or remove the source")
        raise DataError(f"none of the first {len(head)} rows can be read: {first.reason}", where=str(first.origin))

    @staticmethod
    def _convert(name: str, source: SourceBlock, row: Row | BadRow) -> Example | str:
        if isinstance(row, BadRow):
            return row.reason
        try:
            return to_example(name, row.value, source.columns)
        except RowError as error:
            return str(error)
