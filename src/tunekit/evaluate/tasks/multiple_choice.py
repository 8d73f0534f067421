"""Questions with given choices, of which the model finds one the likeliest (PIQA, MMLU, TruthfulQA, BBH)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tunekit.core.errors import DataError
from tunekit.core.progress import Screen
from tunekit.evaluate.choices import (
    Naming,
    Shown,
    every,
    likeliest,
    likelihoods,
    prompter,
    refuse,
    results,
    right_places,
    softmax,
    with_examples,
)  # fmt: skip
from tunekit.evaluate.contract import Engine, Row, TaskResult
from tunekit.evaluate.fewshot import FewShot, LocalFile, beside, joined
from tunekit.evaluate.scoring import Scores
from tunekit.evaluate.template import Column, Template, column, fill, text_of, value

READS = "rows"
Metric = Literal["acc", "acc_norm", "acc_bytes", "mc2"]


class Config(BaseModel):
    """Options of the task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Template = Field(description='what stands before the choice: "Question: {question}\\nAnswer:"')
    choices: Column | tuple[Template, ...] = Field(
        description='a list of templates, ["{sol1}", "{sol2}"], or the column that holds the list'
    )
    answer: int | str | None = Field(
        default=None,
        description="column or template of the right choice (a list: all of them are right); a number: the same "
        "choice in every row",
    )
    answer_as: Literal["auto"] | Naming = Field(
        default="auto", description="how the answer names a choice; auto: the one way that fits all rows"
    )
    index_base: Literal[0, 1] = Field(default=0, description="the index of the first choice")
    empty_choices: Literal["refuse", "leave_out", "keep"] = Field(
        default="refuse",
        description="choices without text; keep: the separator alone is scored, as the lm-evaluation-harness does",
    )
    labels: Column | None = Field(default=None, description="column with 1 for each right choice and 0 for the others")
    answers: LocalFile | None = Field(default=None, description="text file with the answers, one line a row")
    separator: str | None = Field(
        default=None, description="between prompt and choice; default: a space, or nothing in a chat"
    )
    metrics: tuple[Metric, ...] = Field(
        default=(),
        description="acc: the likeliest choice is right; acc_norm, acc_bytes: by likelihood over the choice's "
        "characters or UTF-8 bytes; mc2: probability of the right choices. Default: acc and acc_norm, and mc2 where "
        "a row has several right choices",
    )
    few_shot: FewShot | None = Field(default=None, description="solved examples before every prompt")
    chat: bool = Field(default=False, description="ask through the model's chat template")

    @model_validator(mode="after")
    def _one_answer(self) -> Config:
        given = [name for name in ("answer", "labels", "answers") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"one of answer, labels and answers is needed, not {' and '.join(given) or 'none'}")
        if self.answers is not None and self.few_shot is not None:
            raise ValueError("few_shot needs answer or labels: the file of answers belongs to the evaluation rows")
        return self


@dataclass(frozen=True)
class _Question:
    """One row: its prompt and choices, what names the right ones, and their indices once these are known."""

    where: str
    prompt: str
    choices: tuple[str, ...]
    named: tuple[Any, ...] = ()
    right: tuple[int, ...] = ()

    def shown(self) -> Shown:
        """The row for reports."""
        return Shown(self.where, self.prompt, " / ".join(self.choices[index] for index in self.right))


def check(items: Sequence[Row], config: Config) -> None:
    """Finds all rows that cannot be asked.

    Raises:
        DataError: a column is missing, a row has fewer than two choices or an answer that is none of them, a row is
            among the examples, or there are no rows.
        UserError: a file of examples or answers is missing.
    """
    _questions(items, config)


def run(engine: Engine, items: Sequence[Row], config: Config, *, screen: Screen) -> list[TaskResult]:
    """Scores every choice after its prompt; one result a metric.

    ``acc``, ``acc_norm`` and ``acc_bytes`` are those of the lm-evaluation-harness: the first of equally likely choices
    is taken, the separator does not count as length. ``mc2``: Lin et al., TruthfulQA, arXiv 2109.07958. A likelihood
    that is not a number makes its row's value none.

    Raises:
        DataError, UserError: as `check` does; DataError for a text longer than what the model reads.
    """
    started = time.perf_counter()
    questions, before = _questions(items, config)
    writer = prompter(engine, config.chat, "multiple_choice")
    separator = config.separator if config.separator is not None else "" if config.chat else " "
    asked = [(question, choice) for question in questions for choice in question.choices]
    requests = [writer.likelihood(before + q.prompt, separator + choice, q.where) for q, choice in asked]
    answers = iter(likelihoods(engine, requests, [question.where for question, _ in asked], screen, "multiple_choice"))
    scores = [[next(answers) for _ in question.choices] for question in questions]
    usual: tuple[Metric, ...] = ("acc", "acc_norm")
    if any(len(question.right) > 1 for question in questions):
        usual = (*usual, "mc2")
    found = [
        Scores(tuple(map(_VALUES[name], questions, scores)), (), "mean", "", True, name)
        for name in config.metrics or usual
    ]
    return results("multiple_choice", found, [question.shown() for question in questions], (), started)


def _right(question: _Question, scores: Sequence[float]) -> float:
    chosen = likeliest(scores)
    return math.nan if chosen is None else float(chosen in question.right)


def _acc_norm(question: _Question, scores: Sequence[float]) -> float:
    return _right(question, [_per(score, len(choice)) for score, choice in zip(scores, question.choices)])


def _acc_bytes(question: _Question, scores: Sequence[float]) -> float:
    return _right(question, [_per(score, len(choice.encode())) for score, choice in zip(scores, question.choices)])


def _per(score: float, length: int) -> float:
    return score / length if length else -math.inf


def _mc2(question: _Question, scores: Sequence[float]) -> float:
    probabilities = softmax(scores)
    return math.fsum(probabilities[index] for index in question.right)


_VALUES: dict[Metric, Callable[[_Question, Sequence[float]], float]] = {
    "acc": _right, "acc_norm": _acc_norm, "acc_bytes": _acc_bytes, "mc2": _mc2,
}  # fmt: skip


def _questions(items: Sequence[Row], config: Config) -> tuple[list[_Question], str]:
    """The questions, and the text of the examples that stands before each."""
    lines = beside(items, config.answers) if config.answers is not None else {}
    rows, examples, problems = with_examples(items, config.few_shot, lambda row: _asked(row, config, lines))
    questions = [question for question in (*rows, *examples) if question is not None]
    if not any(question.right for question in questions):
        naming = None if config.answer_as == "auto" else config.answer_as
        cases = [(question.where, question.named, question.choices) for question in questions]
        right, further = right_places(cases, naming, config.index_base)
        questions = [replace(question, right=places) for question, places in zip(questions, right)]
        problems += further
    filled, further = every(questions, lambda question: _filled(question, config))
    refuse([*problems, *further])
    questions = [question for question in filled if question is not None]
    separator = " " if config.separator is None else config.separator
    pairs = [(question.prompt, question.choices[question.right[0]]) for question in questions[len(items) :]]
    return questions[: len(items)], joined(config.few_shot, pairs, separator)


def _asked(row: Row, config: Config, lines: Mapping[int, str]) -> _Question:
    """One row; its right choices are looked for later, unless the data marks them one by one.

    Raises:
        DataError: it cannot be asked.
    """
    prompt = fill(config.prompt, row)
    choices = _choices(row, config.choices)
    question = _Question(row.where, prompt, choices)
    if config.labels is not None:
        return replace(question, right=_marked(column(row, config.labels), config.labels, choices, row.where))
    if isinstance(config.answer, int):
        if not 0 <= (place := config.answer - config.index_base) < len(choices):
            raise DataError(f"there is no choice {config.answer}: there are {len(choices)}", where=row.where)
        return replace(question, right=(place,))
    named = value(config.answer, row) if config.answer is not None else lines[id(row)]
    if named is None or named == []:
        raise DataError(f"column '{config.answer}' holds no answer", where=row.where, fix="leave the row out")
    return replace(question, named=tuple(named) if isinstance(named, list | tuple) else (named,))


def _choices(row: Row, wanted: str | tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(wanted, str):
        found = column(row, wanted)
        if not isinstance(found, list | tuple):
            fix = 'name a column that holds a list, or list templates: choices: ["{a}", "{b}"]'
            raise DataError(f"column '{wanted}' does not hold a list of choices", where=row.where, fix=fix)
        choices = tuple(text_of(choice, f"{wanted}.{n}", row.where) for n, choice in enumerate(found))
    else:
        choices = tuple(fill(text, row) for text in wanted)
    if len(choices) < 2:
        raise DataError(f"a question needs two choices or more, here are {len(choices)}", where=row.where)
    return choices


def _filled(question: _Question, config: Config) -> _Question:
    """The question without its empty choices, or as it is.

    Raises:
        DataError: it has some, and they are refused or cannot be left out.
    """
    left = [place for place, choice in enumerate(question.choices) if choice.strip()]
    if len(left) == len(question.choices) or config.empty_choices == "keep":
        return question
    empty = next(place for place in range(len(question.choices)) if place not in left)
    if config.empty_choices == "refuse":
        fix = "leave the row out, or set empty_choices"
        raise DataError(f"choice {empty + 1} is empty", where=question.where, fix=fix)
    right = tuple(left.index(place) for place in question.right if place in left)
    if len(left) < 2 or not right:
        what = "without its empty choices the row has no right choice, or fewer than two choices"
        raise DataError(what, where=question.where, fix="leave the row out")
    return replace(question, choices=tuple(question.choices[place] for place in left), right=right)


def _marked(marks: Any, name: str, choices: Sequence[str], where: str) -> tuple[int, ...]:
    """Places of the ones among marks of 0 and 1."""
    if not isinstance(marks, list | tuple) or len(marks) != len(choices) or any(mark not in (0, 1) for mark in marks):
        raise DataError(f"column '{name}' does not hold 0 or 1 for each of {len(choices)} choices", where=where)
    right = tuple(place for place, mark in enumerate(marks) if mark)
    if not right:
        raise DataError(f"column '{name}' marks no choice as right", where=where, fix="leave the row out")
    return right
