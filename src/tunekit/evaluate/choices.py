"""What tasks over raw rows share: bad rows collected, texts scored by a model, metrics asked for by name."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from tunekit.core.errors import DataError, Problem, UserError, raise_all
from tunekit.core.progress import Screen
from tunekit.core.registry import nearest
from tunekit.evaluate import measured, scoring
from tunekit.evaluate.contract import Engine, Likelihood, Row, TaskResult
from tunekit.evaluate.fewshot import FewShot, read, seen
from tunekit.evaluate.prompting import Prompter

FIRST = 8  # rows that are looked at before all others: a template that none of these can fill is wrong itself
SHOWN, PLACES = 50, 5  # problems told in one message, and rows named in each

S = TypeVar("S")
T = TypeVar("T")
A = TypeVar("A", bound="Asked")
Naming = Literal["index", "letter", "text"]
"""How an answer names a choice: ``1``, ``B`` or ``(B)``, or the choice itself."""

_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")


@dataclass(frozen=True, slots=True)
class Shown:
    """A row as reports show it."""

    where: str
    prompt_text: str
    reference: str


class Told(Protocol):
    """A row as reports want it."""

    @property
    def where(self) -> str:
        """``file:line`` of the row."""

    @property
    def prompt_text(self) -> str:
        """The prompt as shown to people."""

    @property
    def reference(self) -> str:
        """The answer that the data holds."""


class Asked(Protocol):
    """What a task makes of a row."""

    @property
    def prompt(self) -> str:
        """The row's own prompt."""

    @property
    def where(self) -> str:
        """``file:line`` of the row."""


def refuse_empty(items: Sequence[Any]) -> None:
    """Refuses to evaluate on nothing.

    Raises:
        DataError: there are no rows.
    """
    if not items:
        raise DataError("the evaluation set is empty", fix="name a source that has rows")


def every(rows: Sequence[S], make: Callable[[S], T]) -> tuple[list[T | None], list[Problem]]:
    """``make`` of every row, None where it raised a DataError, and what was wrong.

    When it raises for all of the first rows, the others are not tried.
    """
    found: list[T | None] = []
    problems: list[Problem] = []
    for row in rows:
        if len(found) == FIRST and not any(one is not None for one in found):
            break
        try:
            found.append(make(row))
        except DataError as error:
            found.append(None)
            problems += error.problems
    return found + [None] * (len(rows) - len(found)), problems


def with_examples(
    items: Sequence[Row], block: FewShot | None, make: Callable[[Row], A]
) -> tuple[list[A | None], list[A | None], list[Problem]]:
    """``make`` of the rows and of the examples, None where it fails; and what is wrong, rows among the examples too.

    Raises:
        DataError, UserError: there are no rows, or the examples cannot be read.
    """
    refuse_empty(items)
    found, problems = every([*items, *(read(block) if block is not None else ())], make)
    rows, solved = found[: len(items)], found[len(items) :]
    known, asked = ([(one.prompt, one.where) for one in part if one is not None] for part in (solved, rows))
    return rows, solved, [*problems, *seen(known, asked)]


def refuse(problems: Sequence[Problem]) -> None:
    """Raises them all, those that say the same as one.

    Raises:
        DataError: unless there are none.
    """
    places: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        places.setdefault((problem.what, problem.fix), []).append(problem.where)
    told = [Problem(what + _also(where[1:]), where[0], fix) for (what, fix), where in places.items()]
    if len(told) > SHOWN:
        told[SHOWN:] = [Problem(f"{len(told) - SHOWN} more problems of this kind")]
    raise_all(DataError, told)


def _also(places: Sequence[str]) -> str:
    further = f" and {len(places) - PLACES} more rows" if len(places) > PLACES else ""
    return f" (also {', '.join(places[:PLACES])}{further})" if places else ""


def prompter(engine: Engine, chat: bool, task: str) -> Prompter:
    """What writes the texts to score.

    Raises:
        UserError: the engine has no tokenizer.
    """
    if engine.tokenizer is None:
        raise UserError(f"task '{task}' needs the model's tokenizer, and the engine has none", fix="name its tokenizer")
    return Prompter(engine.tokenizer, chat)


def in_reach(engine: Engine, lengths: Sequence[int], places: Sequence[str], task: str) -> None:
    """Refuses requests longer than what the model reads.

    Raises:
        DataError: some are, each is named.
    """
    if engine.positions is not None:
        fix = f"leave the row out, shorten the prompt of task '{task}', or take fewer examples"
        over = [
            Problem(f"{length} tokens are asked of a model that reads {engine.positions}", where, fix)
            for length, where in zip(lengths, places, strict=True)
            if length > engine.positions
        ]
        refuse(over)


def likelihoods(
    engine: Engine, requests: Sequence[Likelihood], places: Sequence[str], screen: Screen, task: str
) -> list[float]:
    """Log-likelihoods in nats of texts, each of the row at its place.

    Raises:
        DataError: a text is longer than what the model reads.
    """
    in_reach(engine, [len(request.ids) for request in requests], places, task)
    return [answer.value for answer in engine.likelihoods(requests, screen, task)]


def likeliest(scores: Sequence[float]) -> int | None:
    """Index of the highest, the first of equals; None when one of them is not a number."""
    return None if any(map(math.isnan, scores)) else max(range(len(scores)), key=lambda index: scores[index])


def softmax(scores: Sequence[float]) -> list[float]:
    """Probabilities in proportion to exp(score)."""
    highest = max(scores)
    parts = [math.exp(score - highest) for score in scores]
    return [part / math.fsum(parts) for part in parts]


def results(
    task: str, found: Sequence[scoring.Scores], items: Sequence[Told], texts: Sequence[str], started: float
) -> list[TaskResult]:
    """One result a metric; ``started``: what ``time.perf_counter`` said when the task began."""
    seconds = time.perf_counter() - started
    return [measured.result_of(task, scores, texts, items, seconds=seconds) for scores in found]


def right_places(
    cases: Sequence[tuple[str, Sequence[Any], Sequence[str]]], naming: Naming | None, base: int
) -> tuple[list[tuple[int, ...]], list[Problem]]:
    """Indices of the right choices of each case, empty where an answer names none; and what is wrong.

    Args:
        cases: place of the row, its answers, its choices.
        naming: how answers name choices; None: the one way that fits all cases.
        base: the index of the first choice.
    """
    ways: tuple[Naming, ...] = ("index", "letter", "text") if naming is None else (naming,)
    found = {way: [_places(way, given, choices, base) for _, given, choices in cases] for way in ways}
    fitting = [way for way in ways if all(found[way])]
    best = fitting[0] if fitting else max(ways, key=lambda way: sum(map(bool, found[way])))
    problems = []
    for (where, given, choices), places in zip(cases, found[best]):
        if not places:
            told = " / ".join(str(answer) for answer in given)
            close = nearest(told, choices)
            fix = f"did you mean '{close}'?" if close else "see answer_as and index_base"
            problems.append(Problem(f"the answer '{told}' is none of the {len(choices)} choices", where, fix))
    for way in fitting[1:]:
        other = next((n for n, (a, b) in enumerate(zip(found[best], found[way])) if a != b), None)
        if other is not None:
            where, given, _ = cases[other]
            what = f"the answers can be read as {best} and as {way}, which differ here ('{given[0]}')"
            problems.append(Problem(what, where, f"say which: answer_as: {best}, or answer_as: {way}"))
    return found[best], problems


def _places(way: Naming, given: Sequence[Any], choices: Sequence[str], base: int) -> tuple[int, ...]:
    """Each answer's place among the choices; empty when one has none."""
    places = []
    for answer in given:
        text = answer.strip() if isinstance(answer, str) else str(answer)
        if way == "index":
            number = int(text) if text.isdecimal() else int(answer) if isinstance(answer, bool) else -1
            place = number - base
        elif way == "letter":
            letter = _LETTER.fullmatch(text)
            place = ord(letter[1].upper()) - ord("A") if letter else -1
        elif answer in choices:
            place = choices.index(answer)
        else:
            bare = [choice.strip() for choice in choices]
            place = bare.index(text) if text in bare else -1
        if not 0 <= place < len(choices):
            return ()
        places.append(place)
    return tuple(places)
