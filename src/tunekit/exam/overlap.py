"""Which rows of an evaluation the model has seen in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tunekit.core.errors import TunekitError
from tunekit.core.progress import Screen
from tunekit.evaluate.contamination import Index, Match
from tunekit.evaluate.contract import Row, TaskResult
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


@dataclass(frozen=True)
class _Texts:
    """What a row is looked for by: texts that count in whole too, and one that counts only where it is long."""

    asked: tuple[str, ...]
    answer: str = ""


def check(
    block: OverlapBlock,
    tuned: Subject,
    items: Sequence[Sequence[Any]],
    results: Sequence[TaskResult],
    base: Path,
    screen: Screen,
) -> Overlap | None:
    """Looks for the evaluated rows in the training data; None where that is not known, or not to be looked into.

    Args:
        block: the recipe's.
        tuned: the model, whose run names its data.
        items: each task's rows, as they were read.
        results: rows of tasks that bring their own.
        base: folder where relative paths start.
        screen: is told what was found, and why nothing can be.
    """
    if not block.check or (tuned.run is None and not block.train):
        return None
    asked = dict(_texts(tuned, items, results))
    if not asked:
        return None
    index = Index(block.ngram)
    index.leave_out([text for texts in asked.values() for text in texts.asked])
    index.leave_out([texts.answer for texts in asked.values()])
    seen = None
    try:
        with screen.step("reading training data", unit="rows") as step:
            own = rows.training_texts(tuned.run, (), base) if tuned.run is not None else ()
            for text, where in chain(own, rows.training_texts(None, block.train, base)):
                index.add(text, where)
                if where != seen:
                    seen = where
                    step.advance()
    except TunekitError as error:
        screen.warn(f"whether rows were seen in training is not known: {error}")
        return None
    found = []
    for where, texts in asked.items():
        match = _best(index, texts)
        if match is not None and match.share >= SHARE:
            found.append(Leak(where=where, matched=match.where, how=match.kind))
    if found:
        screen.warn(f"{len(found):,} of {len(asked):,} evaluated rows stand in the training data")
    return Overlap(_facts(block, tuned, len(asked), found), frozenset(leak.where for leak in found))


def _facts(block: OverlapBlock, tuned: Subject, checked: int, found: Sequence[Leak]) -> Contamination:
    exact = sum(leak.how == "exact" for leak in found)
    places = [str(tuned.run.path)] if tuned.run else []
    return Contamination(
        checked=checked,
        exact=exact,
        ngram=len(found) - exact,
        against=", ".join([*places, *(source.path for source in block.train)]),
        words=block.ngram,
        rows=tuple(found),
    )


def _best(index: Index, texts: _Texts) -> Match | None:
    found = [index.look(text) for text in texts.asked] + [index.look("", texts.answer)]
    return max(filter(None, found), key=lambda match: match.share, default=None)


def _texts(
    tuned: Subject, items: Sequence[Sequence[Any]], results: Sequence[TaskResult]
) -> Iterator[tuple[str, _Texts]]:
    """What stands in each row, without the words that a task or a template puts around it."""
    known = set()
    for own in items:
        for item in own:
            known.add(item.where)
            if isinstance(item, Row):
                yield item.where, _of_columns(item.values)
            elif not item.prompt_text:  # a document of a run
                text = tuned.tokenizer.decode(list(item.input_ids), skip_special_tokens=True)
                yield item.where, _Texts((text,))
            else:
                yield item.where, _Texts((item.prompt_text,), item.reference)
    for result in results:
        for item in result.items:
            if item.where not in known:
                known.add(item.where)
                yield item.where, _Texts((item.prompt_text,), item.reference)


def _of_columns(values: Mapping[str, Any]) -> _Texts:
    """The longest text of a row in whole, for the others may be labels; all that are long by their n-grams."""
    texts = sorted((value for value in values.values() if isinstance(value, str)), key=len, reverse=True)
    return _Texts(tuple(texts[:1]), "\n".join(texts[1:]))
