"""Answers to the rows' questions, graded by another model or compared by it with other answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tunekit.core.errors import DataError, Problem, raise_all
from tunekit.core.progress import Screen
from tunekit.evaluate.contract import Engine, EvalItem, Prompt, Row, TaskResult
from tunekit.evaluate.endpoint import key_of
from tunekit.evaluate.judging import CRITERIA, Grades, Judge, JudgeServer, grade, pairwise
from tunekit.evaluate.prompting import Prompter
from tunekit.evaluate.template import Column, Template, column, fill, text_of, value

READS = "rows"
BASELINE = "baseline"
"""`against` this word: the answers that the baseline model gives, which `against_baseline` is handed."""


class Config(BaseModel):
    """Options of the task."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    judge: JudgeServer = Field(description="the model that judges")
    mode: Literal["score", "pairwise"] = Field("score", description="grade each answer, or compare it with another")
    prompt: Template = Field(description="the question, from a row's columns")
    reference: Template | None = Field(None, description="column or template of a right answer that the judge is shown")
    criteria: str = Field(CRITERIA, min_length=1, description="what makes an answer good, in words for the judge")
    scale: tuple[int, int] = Field((1, 10), description="the worst score and the best")
    against: Column | None = Field(None, description="pairwise: column of the other answer, or baseline")
    chat: bool = Field(True, description="ask in the model's chat template")
    max_new_tokens: int = Field(512, ge=1, description="the longest answer, in tokens")
    temperature: float = Field(0.0, ge=0, description="0 takes the likeliest token; above, tokens are drawn")
    top_p: float = Field(1.0, gt=0, le=1, description="draw from the likeliest tokens of this total chance")
    seed: int = Field(0, description="seed of the draws")
    stops: tuple[str, ...] = Field((), description="texts that end an answer")
    cache: Path | None = Field(None, description="file of the verdicts so far, which are not asked for again")

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if (self.mode == "pairwise") != (self.against is not None):
            raise ValueError("`against` belongs to mode pairwise, and mode pairwise needs it")
        if self.scale[0] >= self.scale[1]:
            raise ValueError("a scale goes from the worst score up to the best, such as [1, 10]")
        return self


def check(items: Sequence[Row], config: Config) -> None:
    """Finds before any model is asked what would make the task fail; all of it at once.

    Raises:
        UserError: the judge's key is not in the environment.
        DataError: rows without the columns that the templates name, or with an empty question.
    """
    key_of(config.judge.key_from)
    problems: list[Problem] = []
    for row in items:
        try:
            if not fill(config.prompt, row).strip():
                problems.append(Problem("the question is empty", row.where))
            _reference(row, config)
            _other(row, config)
        except DataError as error:
            problems += error.problems
    raise_all(DataError, problems)


def run(engine: Engine, items: Sequence[Row], config: Config, *, screen: Screen) -> list[TaskResult]:
    """Asks the model, then the judge. Against the baseline no row counts yet: `against_baseline` goes on from there.

    Raises:
        UserError, DataError: as `check` does; more than a tenth of the rows got no verdict.
        MachineError: the judge's server fails.
    """
    started = time.perf_counter()
    check(items, config)
    drawn: dict[str, Any] = {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "seed": config.seed,
        "stops": config.stops,
    }
    questions = [fill(config.prompt, row) for row in items]
    if engine.tokenizer is None:  # an engine that takes conversations as they are
        prompts = [Prompt((), config.max_new_tokens, messages=(("user", text),), **drawn) for text in questions]
    else:
        prompter = Prompter(engine.tokenizer, config.chat)
        prompts = [prompter.prompt(text, config.max_new_tokens, **drawn) for text in questions]
    answers = [answer.text for answer in engine.generate(prompts, screen, "judge: answers")]
    if config.mode == "score":
        references = [_reference(row, config) for row in items]
        found = grade(
            Judge(config.judge, config.cache),
            questions,
            answers,
            screen=screen,
            references=references,
            wheres=[row.where for row in items],
            criteria=config.criteria,
            scale=config.scale,
        )
        return [_result("judge_score", found, items, config, answers, started)]
    if config.against == BASELINE:
        nothing = (0.0,) * len(items)
        later = Grades(nothing, nothing, ("",) * len(items), "to be compared with the baseline's answers")
        return [_result("win_rate", later, items, config, answers, started)]
    return _compared(items, config, answers, [_other(row, config) for row in items], screen, started)


def against_baseline(
    items: Sequence[Row], config: Config, baseline: Sequence[str], answers: Sequence[str], *, screen: Screen
) -> list[TaskResult]:
    """How ``answers`` do against those of the ``baseline`` model over the same rows, once both are there.

    Raises:
        UserError, DataError, MachineError: as `run` does.
    """
    return _compared(items, config, answers, baseline, screen, time.perf_counter())


def _compared(
    items: Sequence[Row],
    config: Config,
    answers: Sequence[str],
    others: Sequence[str],
    screen: Screen,
    started: float,
) -> list[TaskResult]:
    found = pairwise(
        Judge(config.judge, config.cache),
        [fill(config.prompt, row) for row in items],
        answers,
        others,
        screen=screen,
        references=[_reference(row, config) for row in items],
        wheres=[row.where for row in items],
        criteria=config.criteria,
    )
    return [_result("win_rate", found, items, config, answers, started)]


def _result(
    metric: str, found: Grades, items: Sequence[Row], config: Config, answers: Sequence[str], started: float
) -> TaskResult:
    return TaskResult(
        name="judge",
        metric=metric,
        higher_is_better=True,
        statistic="mean",
        values=found.values,
        weights=found.weights,
        items=tuple(
            EvalItem((), (), (), fill(config.prompt, row), _reference(row, config) or _other(row, config), row.where)
            for row in items
        ),
        texts=tuple(answers),
        seconds=time.perf_counter() - started,
        note=found.note,
    )


def _reference(row: Row, config: Config) -> str:
    """The right answer; empty when the recipe names none."""
    return "" if config.reference is None else text_of(value(config.reference, row), config.reference, row.where)


def _other(row: Row, config: Config) -> str:
    """The answer to compare with; empty when it is no column's."""
    if config.against in (None, BASELINE):
        return ""
    return text_of(column(row, str(config.against)), str(config.against), row.where)
