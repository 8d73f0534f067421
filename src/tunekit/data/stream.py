"""Training examples while they are read, for data larger than disk: same rendering, ledger and gate, nothing stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from tunekit.core.errors import DataError
from tunekit.core.types import Fate, Origin
from tunekit.data.examples import ExampleReader
from tunekit.data.fit import Encoding, Fitter
from tunekit.data.gate import Gate
from tunekit.data.ledger import Entry, Ledger
from tunekit.data.pack import best_fit
from tunekit.data.store import join
from tunekit.recipe.schema import Recipe

if TYPE_CHECKING:
    from datasets import IterableDataset

BATCH = 256
WINDOW = 1024
"""Examples that are packed together, and among which rows are shuffled."""
JUDGED_FROM = 200
"""The drop rate of a stream is judged once so many rows have been read."""


class Stream:
    """The training rows of a recipe as a stream of final examples.

    ``ledger`` and ``content`` grow as rows are read for the first time; every example passes the gate before it is
    handed on.

    Raises (while iterating):
        DataError: the gate refuses an example, or more rows are lost than allowed.
    """

    def __init__(self, recipe: Recipe, reader: ExampleReader, fitter: Fitter) -> None:
        self.recipe, self.reader, self.fitter = recipe, reader, fitter
        self.ledger = Ledger()
        self.content = hashlib.sha256()
        self._lost = 0
        self._judged = False
        self._row = 0  # of the present pass; also its number in the ledger

    def __getstate__(self) -> dict[str, str]:
        """What `datasets` hashes to name the generator; a stream itself is never sent to another process."""
        return {"recipe": self.recipe.model_dump_json()}

    def dataset(self) -> IterableDataset:
        """The stream as an IterableDataset; shuffled within a window when the recipe wants it."""
        from datasets import IterableDataset

        data = cast("IterableDataset", IterableDataset.from_generator(self.examples))
        if self.recipe.data.shuffle:
            return data.shuffle(seed=self.recipe.train.seed, buffer_size=WINDOW)
        return data

    def examples(self) -> Iterator[dict[str, Any]]:
        """Final examples, packed within a window when the recipe packs; begins anew when the data ends."""
        while True:
            rows = self._fitted()
            begun = False
            while window := list(islice(rows, WINDOW)):
                begun = True
                yield from self._final(window)
            if not begun:
                self.ledger.check(self.recipe.data.max_drop_rate)
                raise DataError("the stream holds no row that can be trained on", where=self.recipe.data.train[0].path)
            if not self._judged:  # once every row is known, not only when training has ended
                self.ledger.check(self.recipe.data.max_drop_rate)
                self._judged = True

    def _fitted(self) -> Iterator[dict[str, Any]]:
        rows, self._row = self.reader.learnt(self.recipe.data.train), 0
        while batch := list(islice(rows, BATCH)):
            encodings = iter(self.fitter.encode([learnt for _, learnt in batch if not isinstance(learnt, str)]))
            for origin, learnt in batch:
                yield from self._entered(origin, learnt if isinstance(learnt, str) else next(encodings))

    def _entered(self, origin: Origin, encoding: Encoding | str) -> Iterator[dict[str, Any]]:
        number, self._row = self._row, self._row + 1
        if number == len(self.ledger):
            self._account(origin, encoding)
        if isinstance(encoding, Encoding):
            yield from ({"number": number, **item} for item in encoding.examples)

    def _account(self, origin: Origin, encoding: Encoding | str) -> None:
        """Enters a row that is read for the first time."""
        if isinstance(encoding, str) or encoding.lost:
            reason, detail = (encoding, "") if isinstance(encoding, str) else (encoding.lost, encoding.detail)
            if isinstance(encoding, Encoding) and encoding.overlong and self.recipe.data.overlong == "error":
                raise DataError(
                    f"{reason}: {detail}",
                    where=str(origin),
                    fix="raise data.max_length, or set data.overlong: truncate",
                )
            lost = encoding.tokens if isinstance(encoding, Encoding) else 0
            self.ledger.add(Entry("train", origin, "dropped", reason, detail, lost_tokens=lost))
            self._lost += 1
            if len(self.ledger) >= JUDGED_FROM and self._lost / len(self.ledger) > self.recipe.data.max_drop_rate:
                self.ledger.check(self.recipe.data.max_drop_rate)
            return
        self.content.update(encoding.text.encode("utf-8", "surrogatepass"))
        stay, trained = encoding.stay, encoding.labelled
        fate: Fate = "truncated" if stay < encoding.tokens else "kept"
        lost = encoding.tokens - stay
        self.ledger.add(Entry("train", origin, fate, encoding.why_less, encoding.partly, stay, trained, lost))

    def _final(self, window: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        groups: Sequence[Sequence[int]] = [[i] for i in range(len(window))]
        if self.recipe.data.packing:
            groups = best_fit([row["length"] for row in window], self.recipe.data.max_length)
        for group in groups:
            final = join([window[i] for i in group], self.fitter.isolated)
            gate = Gate(self.fitter.facts.vocabulary, self.fitter.facts.bos_id, self.fitter.material)
            gate.look(final, lambda numbers=final["rows"]: ", ".join(str(self.ledger[n].origin) for n in numbers))  # type: ignore[misc]
            gate.close()
            yield final
