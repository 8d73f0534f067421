"""One preparation: rows -> tokens -> ledger -> split -> packed -> gate. Memory stays flat but for the ledger."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, cast

from tunekit.core.errors import DataError
from tunekit.core.files import write_json
from tunekit.core.progress import Screen
from tunekit.core.types import Fate, Origin, Split
from tunekit.data.examples import ExampleReader
from tunekit.data.fit import Encoding, Fitter
from tunekit.data.gate import Gate
from tunekit.data.ledger import Entry, Ledger
from tunekit.data.pack import best_fit
from tunekit.data.store import ArrowWriter, RowFile, final_schema, join, row_schema
from tunekit.recipe.schema import EvalSplit, Recipe, SourceBlock

BATCH = 256


def eval_sources(recipe: Recipe) -> tuple[SourceBlock, ...]:
    """The sources named for evaluation; empty when rows are held out of the training sources."""
    return () if isinstance(recipe.data.eval, EvalSplit) else recipe.data.eval


def uniform(*parts: object) -> float:
    """A reproducible number in [0, 1) for a key, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@contextmanager
def libraries_at_rest() -> Iterator[None]:
    """Leaves what is in memory now (the loaded libraries, mostly) out of garbage collections.

    Each full collection walks over some 400,000 objects of theirs, which a few thousand rows bring about.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Preparation:
    """Prepares the rows of one recipe into a folder."""

    def __init__(self, recipe: Recipe, reader: ExampleReader, fitter: Fitter, screen: Screen, folder: Path) -> None:
        self.recipe, self.reader, self.fitter, self.screen, self.folder = recipe, reader, fitter, screen, folder
        self.ledger = Ledger()
        self.texts: dict[bytes, int] = {}  # hash of a rendered train text -> its first row in the ledger
        self.draws: list[tuple[float, int]] = []  # (draw of the text, ledger row) of rows that may be held out
        self.copies: dict[int, int] = {}  # ledger row -> how often it is seen in an epoch, when not once
        self.overlaps: list[tuple[int, int]] = []  # (eval row, train row) of the same text
        self.content = hashlib.sha256()
        spec = recipe.data.eval
        draws = isinstance(spec, EvalSplit) and (spec.count is not None or spec.fraction is not None)
        self.split = cast(EvalSplit, spec) if draws else None

    def run(self) -> None:
        """Writes ``train.arrow``, ``eval.arrow``, ``ledger.parquet`` and ``facts.json``.

        Raises:
            DataError: too many rows are lost, or the gate refuses an example.
        """
        with libraries_at_rest():
            self._run()

    def _run(self) -> None:
        rows = self.folder / "rows.arrow"
        with ArrowWriter(rows, row_schema()) as writer:
            self._read("train", () if self.recipe.data.streaming else self.recipe.data.train, writer)
            self._read("eval", eval_sources(self.recipe), writer)
        self.ledger.hold_out(self._held_out())
        self.ledger.check(self.recipe.data.max_drop_rate)
        if "train" not in self.ledger.summary() and not self.recipe.data.streaming:
            raise DataError("there is no training row", fix="check data.train")
        facts = self._write_final(RowFile(rows))
        rows.unlink()
        self.ledger.save(self.folder / "ledger.parquet")
        facts |= {"summary": self.ledger.summary(), "fingerprint": self.content.hexdigest()}
        write_json(self.folder / "facts.json", facts)

    def _read(self, split: Split, sources: Sequence[SourceBlock], writer: ArrowWriter) -> None:
        if not sources:
            return
        rows = self.reader.learnt(sources)
        with self.screen.step(f"reading and rendering {split} rows", unit="rows") as step:
            while batch := list(islice(rows, BATCH)):
                encodings = iter(self.fitter.encode([learnt for _, learnt in batch if not isinstance(learnt, str)]))
                for origin, learnt in batch:
                    self._enter(origin, split, learnt if isinstance(learnt, str) else next(encodings), writer)
                step.advance(len(batch))

    def _enter(self, origin: Origin, split: Split, encoding: Encoding | str, writer: ArrowWriter) -> None:
        """Enters one input row in the ledger and, unless it is lost, its examples in the writer."""
        if isinstance(encoding, str):
            self.ledger.add(Entry(split, origin, "dropped", encoding))
            return
        digest = hashlib.sha256(encoding.text.encode("utf-8", "surrogatepass")).digest()[:16]
        earlier, copies = self.texts.get(digest), self._copies(origin, split)
        same = f"same text as {self.ledger[earlier].origin}" if earlier is not None else ""
        tokens = encoding.tokens
        if same and split == "train" and self.recipe.data.duplicates == "drop":
            self.ledger.add(Entry(split, origin, "duplicate", "duplicate", same, lost_tokens=tokens))
        elif not copies:
            self.ledger.add(Entry(split, origin, "unused", "not drawn by the source's weight", lost_tokens=tokens))
        elif encoding.lost:
            if self.recipe.data.overlong == "error" and encoding.overlong:
                what = f"{encoding.lost}: {encoding.detail}"
                raise DataError(what, where=str(origin), fix="raise data.max_length, or set data.overlong: truncate")
            self.ledger.add(Entry(split, origin, "dropped", encoding.lost, encoding.detail, lost_tokens=tokens))
        else:
            stay, trained = encoding.stay, encoding.labelled
            reason = encoding.why_less or ("duplicate that is kept" if same else "")
            fate: Fate = "truncated" if stay < tokens else "kept"
            detail = encoding.partly or same
            number = self.ledger.add(Entry(split, origin, fate, reason, detail, stay, trained, tokens - stay))
            for item in encoding.examples:
                writer.add({"number": number, **item})
            self._remember(number, split, digest, earlier, copies, encoding.drawn_by)

    def _remember(
        self, number: int, split: Split, digest: bytes, earlier: int | None, copies: int, drawn_by: str
    ) -> None:
        self.content.update(digest)
        if split == "train":
            self.texts.setdefault(digest, number)
            if self.split is not None:
                self.draws.append((uniform(self.recipe.train.seed, "held out", drawn_by), number))
            if copies != 1:
                self.copies[number] = copies
        elif earlier is not None:
            self.overlaps.append((number, earlier))

    def _copies(self, origin: Origin, split: Split) -> int:
        """How often a row is seen in an epoch: its source's weight, the fraction drawn with the seed."""
        if split == "eval":
            return 1
        weight = self.recipe.data.train[origin.source].weight
        whole = int(weight)
        if whole == weight:
            return whole
        return whole + (uniform(self.recipe.train.seed, "weight", origin.source, origin) < weight - whole)

    def _held_out(self) -> list[int]:
        """Rows drawn for evaluation: those whose text has the smallest draws, so equal texts stay on one side.

        Of pairs and judged answers it is the prompt that is drawn: no prompt is both trained and held out.
        """
        spec = self.split
        if spec is None:
            return []
        wanted = spec.count if spec.count is not None else max(1, round(len(self.draws) * (spec.fraction or 0)))
        if wanted >= len(self.draws):
            what = f"{wanted} rows are to be held out, but only {len(self.draws)} rows can be used"
            raise DataError(what, fix="lower data.eval", problems=self.ledger.problems(self.ledger.lost(), ""))
        limit = sorted(self.draws)[wanted - 1][0]
        held_out = [number for draw, number in self.draws if draw <= limit]
        if len(held_out) == len(self.draws):
            what = "rows that are alike (in their text, or in the prompt of their answers) are held out together"
            raise DataError(f"{what}: no other row would be left", fix="name a list of sources as data.eval")
        return held_out

    def _write_final(self, rows: RowFile) -> dict[str, Any]:
        """Writes the train and eval files through the gate; returns counts of what was written."""
        gate = Gate(self.fitter.facts.vocabulary, self.fitter.facts.bos_id, self.fitter.material)
        gate.overlap(
            (str(self.ledger[held].origin), str(self.ledger[trained].origin)) for held, trained in self.overlaps
        )
        numbers, lengths = rows.column("number"), rows.column("length")
        held_out = [i for i, n in enumerate(numbers) if self.ledger.split(n) == "eval"]
        out = set(held_out)
        train = [i for i, n in enumerate(numbers) if i not in out for _ in range(self.copies.get(n, 1))]
        capacity = self.recipe.data.max_length
        groups: Sequence[Sequence[int]] = [[i] for i in train]
        if self.recipe.data.packing:
            groups = [[train[i] for i in row] for row in best_fit([lengths[i] for i in train], capacity)]
        if not self.recipe.data.streaming:
            self._write("train", rows, groups, gate)
        if held_out:
            self._write("eval", rows, [[i] for i in held_out], gate)
        gate.close()
        tokens = sum(lengths[i] for i in train)
        filled = tokens / (len(groups) * capacity) if self.recipe.data.packing and groups else None
        return {"examples": len(groups), "eval_examples": len(held_out), "tokens": tokens, "filled": filled}

    def _write(self, split: Split, rows: RowFile, groups: Sequence[Sequence[int]], gate: Gate) -> None:
        with (
            self.screen.step(f"checking {split} examples", len(groups), "examples") as step,
            ArrowWriter(self.folder / f"{split}.arrow", final_schema()) as writer,
        ):
            for group in groups:
                final = join([rows[i] for i in group], self.fitter.isolated)
                gate.look(final, lambda numbers=final["rows"]: ", ".join(str(self.ledger[n].origin) for n in numbers))  # type: ignore[misc]
                writer.add(final)
                step.advance()
