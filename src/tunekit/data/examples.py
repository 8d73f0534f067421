"""Sources -> rows -> examples: the format of each source is detected once, then every row is converted or refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tunekit.core.errors import DataError
from tunekit.core.types import BadRow, Example, Judged, Learnt, Material, Message, Origin, Question, Row, RowError
from tunekit.data.detect import check_serves, detect, to_example
from tunekit.data.sources import fingerprint, iter_rows
from tunekit.recipe.schema import SourceBlock

PROBED = 50


@dataclass(frozen=True)
class ExampleReader:
    """Reads what is learnt from a recipe's sources.

    Args:
        base: folder where relative paths start (the recipe's); the working directory comes second.
        material: what the method learns from.
    """

    base: Path
    material: Material = "texts"

    def fingerprint(self, sources: Sequence[SourceBlock]) -> list[dict[str, Any]]:
        """What identifies the sources' content and reading: files with size and sha256, and the source's own keys."""
        return [
            {**source.model_dump(mode="json", exclude={"path"}), "files": fingerprint(source, self.base)}
            for source in sources
        ]

    def examples(self, sources: Sequence[SourceBlock]) -> Iterator[tuple[Origin, Example | str]]:
        """Each input row as an example, or as the reason why it is none; lazily, in the sources' order.

        Raises:
            DataError: no format fits a source's first rows.
            UserError: a source's format is not one that gives texts.
        """
        assert self.material == "texts", self.material
        for origin, learnt in self.learnt(sources):
            assert isinstance(learnt, Example | str), learnt
            yield origin, learnt

    def learnt(self, sources: Sequence[SourceBlock]) -> Iterator[tuple[Origin, Learnt | str]]:
        """Each input row as what is learnt from it, or as the reason why it is nothing; lazily, in order.

        Raises:
            DataError: no format fits a source's first rows.
            UserError: a source's format does not serve the material.
        """
        for index, source in enumerate(sources):
            if source.format != "auto":
                check_serves(source.format, self.material)
            rows = iter_rows(source, index, self.base)
            head = list(islice(rows, PROBED))
            name = source.format if source.format != "auto" else self._detect(source, head)
            for row in chain(head, rows):
                yield row.origin, self._convert(name, source, row)

    def _detect(self, source: SourceBlock, head: Sequence[Row | BadRow]) -> str:
        good = [row.value for row in head if isinstance(row, Row)]
        if good:
            return detect(good, source.columns, self.material)
        first = next((row for row in head if isinstance(row, BadRow)), None)
        if first is None:
            raise DataError("the source holds no rows", where=source.path, fix="check the file, or remove the source")
        raise DataError(f"none of the first {len(head)} rows can be read: {first.reason}", where=str(first.origin))

    def _convert(self, name: str, source: SourceBlock, row: Row | BadRow) -> Learnt | str:
        if isinstance(row, BadRow):
            return row.reason
        try:
            learnt = to_example(name, row.value, source.columns)
        except RowError as error:
            return str(error)
        return question_of(learnt, row.value) if self.material == "prompts" else learnt


def question_of(learnt: Learnt, row: Mapping[str, Any]) -> Question | str:
    """What a row asks: all before its last answer, which is the reference unless it was found bad; plain text whole."""
    if isinstance(learnt, Question):
        return learnt
    good = not isinstance(learnt, Judged) or learnt.good
    example = (
        learnt[0].chosen if isinstance(learnt, tuple) else learnt.example if isinstance(learnt, Judged) else learnt
    )
    *before, answer = example.messages or (Message("assistant", ""),)
    if not before and not example.text:
        return "no message stands before the answer"
    asked = Example(tuple(before), example.tools, example.text)
    return Question(asked, answer.content if good else "", dict(row))
