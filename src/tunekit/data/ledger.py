"""The ledger: what became of every input row. Its counts add up to the input, or the run does not start."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tunekit.core.errors import DataError, Problem
from tunekit.core.types import Fate, Origin, Split

FATES: tuple[Fate, ...] = ("kept", "truncated", "dropped", "duplicate", "unused")
SHOWN = 5
LIMIT = "data.max_length"
"""Stands in the reasons of rows that are lost because they are too long."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row's fate.

    ``reason`` is a class of reasons that can be counted, ``detail`` what is special about this row. ``tokens`` are
    those that stay, ``trained_tokens`` those of them with a label, ``lost_tokens`` those cut off or dropped.
    """

    split: Split
    origin: Origin
    fate: Fate
    reason: str = ""
    detail: str = ""
    tokens: int = 0
    trained_tokens: int = 0
    lost_tokens: int = 0


class _Words:
    """Numbers words as they come."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, word: str) -> int:
        if word not in self._numbers:
            self._numbers[word] = len(self.words)
            self.words.append(word)
        return self._numbers[word]


class Ledger:
    """Fates of all rows, held in compact columns: about 40 bytes a row."""

    def __init__(self) -> None:
        self._words = {name: _Words() for name in ("file", "reason", "detail")}
        self._columns = {name: array(kind) for name, kind in
                         (("split", "b"), ("source", "h"), ("file", "i"), ("line", "q"), ("fate", "b"), ("reason", "i"),
                          ("detail", "i"), ("tokens", "i"), ("trained_tokens", "i"), ("lost_tokens", "i"))}  # fmt: skip

    def __len__(self) -> int:
        return len(self._columns["split"])

    def add(self, entry: Entry) -> int:
        """Adds a row and returns its number in the ledger."""
        columns = self._columns
        columns["split"].append(entry.split == "eval")
        columns["source"].append(entry.origin.source)
        columns["file"].append(self._words["file"].number(entry.origin.file))
        columns["line"].append(entry.origin.line)
        columns["fate"].append(FATES.index(entry.fate))
        columns["reason"].append(self._words["reason"].number(entry.reason))
        columns["detail"].append(self._words["detail"].number(entry.detail))
        columns["tokens"].append(entry.tokens)
        columns["trained_tokens"].append(entry.trained_tokens)
        columns["lost_tokens"].append(entry.lost_tokens)
        return len(self) - 1

    def hold_out(self, numbers: Iterable[int]) -> None:
        """Moves rows to the eval split."""
        for number in numbers:
            self._columns["split"][number] = 1

    def __iter__(self) -> Iterator[Entry]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Entry:
        at = {name: column[number] for name, column in self._columns.items()}
        words = {name: table.words[at[name]] for name, table in self._words.items()}
        return Entry(
            split=self.split(number),
            origin=Origin(at["source"], words["file"], at["line"]),
            fate=FATES[at["fate"]],
            reason=words["reason"],
            detail=words["detail"],
            tokens=at["tokens"],
            trained_tokens=at["trained_tokens"],
            lost_tokens=at["lost_tokens"],
        )

    def split(self, number: int) -> Split:
        """The split of one row."""
        return "eval" if self._columns["split"][number] else "train"

    def summary(self) -> dict[str, dict[str, Any]]:
        """Counts by split: rows, each fate, tokens, trained and lost tokens, and how often each reason was given."""
        reasons = self._words["reason"].words
        result: dict[str, dict[str, Any]] = {}
        for split, flag in (("train", 0), ("eval", 1)):
            numbers = [n for n, value in enumerate(self._columns["split"]) if value == flag]
            if not numbers:
                continue
            fates = Counter(FATES[self._columns["fate"][n]] for n in numbers)
            given = Counter(reasons[self._columns["reason"][n]] for n in numbers)
            given.pop("", None)
            result[split] = {
                "rows": len(numbers),
                **{fate: fates[fate] for fate in FATES},
                "tokens": sum(self._columns["tokens"][n] for n in numbers),
                "trained_tokens": sum(self._columns["trained_tokens"][n] for n in numbers),
                "lost_tokens": sum(self._columns["lost_tokens"][n] for n in numbers),
                "reasons": dict(given.most_common(50)),
            }
        return result

    def lost(self, split: Split | None = None) -> list[int]:
        """Numbers of the dropped rows."""
        dropped, flag = FATES.index("dropped"), {"train": 0, "eval": 1, None: None}[split]
        columns = self._columns
        return [n for n, fate in enumerate(columns["fate"]) if fate == dropped and flag in (None, columns["split"][n])]

    def problems(self, numbers: list[int], fix: str) -> list[Problem]:
        """The first rows of ``numbers`` with their reasons, then a count of the others."""
        shown = [self[number] for number in numbers[:SHOWN]]
        words = [entry.reason + (f": {entry.detail}" if entry.detail else "") for entry in shown]
        problems = [Problem(what, str(entry.origin), fix if not index else "")
                    for index, (what, entry) in enumerate(zip(words, shown, strict=True))]  # fmt: skip
        if len(numbers) > SHOWN:
            problems.append(Problem(f"and {len(numbers) - SHOWN:,} more rows (all of them are in ledger.parquet)"))
        return problems

    def save(self, path: Path) -> None:
        """Writes the ledger as parquet, one line a row, with the columns of `Entry`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        def words(name: str) -> pa.DictionaryArray:
            table = pa.array(self._words[name].words, pa.string())
            return pa.DictionaryArray.from_arrays(pa.array(self._columns[name], pa.int32()), table)

        columns = self._columns
        table = pa.table({
            "split": pa.DictionaryArray.from_arrays(pa.array(columns["split"], pa.int8()), ["train", "eval"]),
            "file": words("file"),
            "line": pa.array(columns["line"], pa.int64()),
            "fate": pa.DictionaryArray.from_arrays(pa.array(columns["fate"], pa.int8()), list(FATES)),
            "reason": words("reason"),
            "detail": words("detail"),
            "tokens": pa.array(columns["tokens"], pa.int32()),
            "trained_tokens": pa.array(columns["trained_tokens"], pa.int32()),
            "lost_tokens": pa.array(columns["lost_tokens"], pa.int32()),
        })  # fmt: skip
        pq.write_table(table, path)

    @classmethod
    def load(cls, path: Path) -> Ledger:
        """Reads a ledger written by `save`."""
        import pyarrow.parquet as pq

        ledger = cls()
        for row in pq.read_table(path).to_pylist():
            origin = Origin(0, row["file"], row["line"])
            fate = cast(Fate, row["fate"])
            ledger.add(Entry(row["split"], origin, fate, row["reason"], row["detail"], row["tokens"],
                             row["trained_tokens"], row["lost_tokens"]))  # fmt: skip
        return ledger

    def extend(self, other: Ledger) -> None:
        """Adds all rows of another ledger."""
        for entry in other:
            self.add(entry)

    def check(self, max_drop_rate: float) -> None:
        """Refuses a split that lost more rows than allowed, or that kept none.

        Raises:
            DataError: names the first five lost rows with their reasons, and counts the others.
        """
        for split, counts in self.summary().items():
            lost, rows = self.lost(cast(Split, split)), counts["rows"]
            kept = counts["kept"] + counts["truncated"]
            if lost and (len(lost) / rows > max_drop_rate or not kept):
                rate = f"{len(lost) / rows:.1%}; allowed: {max_drop_rate:.1%}"
                too_long = any(LIMIT in self[number].reason for number in lost)
                raise DataError(
                    f"{len(lost):,} of {rows:,} {split} rows cannot be used ({rate})",
                    fix=f"mend the rows below,{f' raise {LIMIT},' if too_long else ''} or allow more with "
                    "data.max_drop_rate",
                    problems=self.problems(lost, ""),
                )
            if not kept:
                raise DataError(f"no {split} row is left of {rows:,}", fix="see the ledger's reasons")
