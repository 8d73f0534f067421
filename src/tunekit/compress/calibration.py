"""Rows of text that a method looks at before it rounds or drops weights: of the run's own training data by default."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tunekit.compress.source import Source
from tunekit.core.errors import DataError, UserError
from tunekit.core.files import sha256_json
from tunekit.core.progress import Screen
from tunekit.core.types import Material
from tunekit.evaluate.contract import EvalItem
from tunekit.exam import rows as exam_rows
from tunekit.plan.plan import Plan
from tunekit.recipe.kinds import material_of
from tunekit.recipe.schema import SourceBlock

ROWS, LENGTH = 256, 512
READ = 4096  # rows from which those are drawn
_EAST = ("CJK", "HIRAGANA", "KATAKANA")
MAIN = 0.5  # share of letters that makes a script the text's own
LOST = 0.5  # share of rows that may be unusable
_FIX = "name others: --calib data.jsonl"


@dataclass(frozen=True)
class Calibration:
    """Rows as the model reads them.

    Args:
        ids: (row, token).
        where: ``file:line`` of each.
        source: in words.
        text: of all rows, for what language it is in.
    """

    ids: tuple[tuple[int, ...], ...]
    where: tuple[str, ...]
    source: str
    text: str

    @property
    def facts(self) -> dict[str, object]:
        """What the record keeps: how many, which, and a hash of what was read."""
        tokens = sum(map(len, self.ids))
        return {"source": self.source, "rows": len(self.ids), "tokens": tokens, "sha256": sha256_json(self.ids),
                "where": list(self.where)}  # fmt: skip


def read(
    source: Source,
    named: Sequence[SourceBlock],
    base: Path,
    screen: Screen,
    *,
    held: Sequence[EvalItem] = (),
    count: int = ROWS,
    length: int = LENGTH,
    seed: int = 0,
) -> Calibration:
    """Draws rows, rendered with the model's chat template, each cut to its first tokens.

    Args:
        source: the model.
        named: where rows are; empty for the training data of the run that made the model.
        base: folder where relative paths of `named` start.
        screen: is told of rows that cannot be used.
        held: rows that the proof looks at, which are left out, as is what says the same somewhere else.
        count: of rows.
        length: tokens of a row, at most.
        seed: of the draw.

    Raises:
        UserError: no rows are named, and the model is of no run.
        DataError: there are none, or most cannot be used.
    """
    material: Material = "texts"
    words = ", ".join(str(block.path) for block in named)
    if not named:
        if source.run is None:
            raise UserError(f"'{source.name}' is of no run whose training data could be looked at", where="--calib",
                            fix="name rows like those it will read: --calib data.jsonl")  # fmt: skip
        plan = Plan.load(source.run.plan)
        named, base = plan.recipe.data.train, Path(plan.recipe_folder)
        material, words = material_of(plan.recipe), "the run's training data"
    tally = exam_rows.Tally()
    places, said = frozenset(row.where for row in held), frozenset(tuple(row.input_ids) for row in held)
    read_rows = exam_rows.examples(named, base, exam_rows.fitter_of(source.tokenizer), tally, material=material)
    found = [item for item in islice(read_rows, READ) if item.where not in places and tuple(item.input_ids) not in said]
    _settle(tally, words, screen)
    if not found and tally.read > len(tally.lost):
        what = "every row to calibrate on is a row to measure on: nothing is left"
        raise DataError(
            what, where=words, fix="name other rows to calibrate on, --calib FILE, or to measure on, --data"
        )
    if not found:
        raise DataError("there are no rows to calibrate on", where=words, fix=_FIX)
    drawn = random.Random(seed).sample(found, min(count, len(found)))
    drawn = [item for item in drawn if len(item.input_ids) > 1]
    if not drawn:
        raise DataError("no row to calibrate on has two tokens", where=words, fix=_FIX)
    bound = min(length, source.positions or length)
    ids = tuple(tuple(item.input_ids[:bound]) for item in drawn)
    text = "\n".join(str(source.tokenizer.decode(row, skip_special_tokens=True)) for row in ids)
    return Calibration(ids, tuple(item.where for item in drawn), words, text)


def _settle(tally: exam_rows.Tally, words: str, screen: Screen) -> None:
    """Tells of rows that cannot be used; raises DataError where they are most."""
    if len(tally.lost) > LOST * tally.read:
        what = f"{len(tally.lost):,} of {tally.read:,} rows to calibrate on cannot be used"
        raise DataError(what, where=words, fix=_FIX, problems=tally.lost[: exam_rows.SHOWN])
    if tally.lost:
        first = tally.lost[0]
        screen.warn(f"{len(tally.lost):,} rows are not calibrated on; {first.where}: {first.what}")


def script(text: str) -> str | None:
    """The script that at least half of a text's letters are in, by the first word of their Unicode names; or None.

    Chinese characters and kana count as one: Japanese is written in both, in any shares.
    """
    words = (unicodedata.name(letter, "?").split()[0] for letter in text[: 1 << 18] if letter.isalpha())
    counts: Counter[str] = Counter("CJK" if word in _EAST else word for word in words)
    if not counts:
        return None
    name, most = counts.most_common(1)[0]
    return name if most >= MAIN * counts.total() else None


def check_language(calibration: Calibration, text: str) -> None:
    """Compares the script of the calibration with that of the text that the model is then measured on.

    Raises:
        DataError: they are different ones: what is looked at would not be what is read.
    """
    one, other = script(calibration.text), script(text)
    if one is not None and other is not None and one != other:
        what = f"the rows to calibrate on are in {one.title()} letters, the rows to measure on in {other.title()} ones"
        raise DataError(what, where=calibration.source, fix="calibrate on text like that which the model will read")
