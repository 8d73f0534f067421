"""Which rows of an evaluation the model has seen in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunekit.core.errors import TunekitError
from tunekit.core.progress import Screen
from tunekit.evaluate.contamination import Index
from tunekit.evaluate.contract import TaskResult
from tunekit.exam import rows
from tunekit.exam.facts import Contamination, Leak
from tunekit.exam.models import Subject
from tunekit.exam.recipe import OverlapBlock

SHARE = 0.5
"""Of a row's n-grams that must stand in the training data: a turn of phrase is no copy, half a text is one."""


@dataclass(frozen=True)
class Overlap:
    """What was found: the facts for the record, and the places of the rows."""

    facts: Contamination
    rows: frozenset[str]


def check(
    block: OverlapBlock, tuned: Subject, results: Sequence[TaskResult], base: Path, screen: Screen
) -> Overlap | None:
    """Looks for the evaluated rows in the training data; None where that is not known, or not to be looked into.

    Args:
        block: the recipe's.
        tuned: the model, whose run names its data.
        results: whose rows are looked for.
        base: folder where relative paths start.
        screen: is told what was found, and why nothing can be.
    """
    asked = {item.where: (item.prompt_text, item.reference) for result in results for item in result.items}
    if not block.check or not asked or (tuned.run is None and not block.train):
        return None
    index = Index(block.ngram)
    for texts in zip(*asked.values(), strict=True):
        index.leave_out(texts)
    seen = None
    try:
        with screen.step("reading training data", unit="rows") as step:
            for text, where in rows.training_texts(tuned.run, block.train, base):
                index.add(text, where)
                if where != seen:
                    seen = where
                    step.advance()
    except TunekitError as error:
        screen.warn(f"whether rows were seen in training is not known: {error}")
        return None
    found = []
    for where, (prompt, reference) in asked.items():
        match = index.look(prompt, reference)
        if match is not None and match.share >= SHARE:
            found.append(Leak(where=where, matched=match.where, how=match.kind))
    exact = sum(leak.how == "exact" for leak in found)
    if found:
        screen.warn(f"{len(found):,} of {len(asked):,} evaluated rows stand in the training data")
    facts = Contamination(
        checked=len(asked),
        exact=exact,
        ngram=len(found) - exact,
        against=str(tuned.run.path) if tuned.run else ", ".join(source.path for source in block.train),
        words=block.ngram,
        rows=tuple(found),
    )
    return Overlap(facts, frozenset(leak.where for leak in found))
