"""Answers generated from the evaluation rows' prompts, scored against the answers in the data."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tunekit.core.errors import DataError, Problem, raise_all
from tunekit.core.progress import Screen
from tunekit.evaluate import measured, scoring
from tunekit.evaluate.contract import Engine, Item, Prompt, TaskResult

READS = "examples"


class Config(BaseModel):
    """Options of the task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int = Field(default=64, ge=1, description="the longest answer, in tokens")
    metrics: tuple[measured.Wish, ...] = Field(default=("exact_match",), description=measured.HELP)
    temperature: float = Field(default=0.0, ge=0, description="0 takes the likeliest token; above, tokens are drawn")
    top_p: float = Field(default=1.0, gt=0, le=1, description="draw from the likeliest tokens of this total chance")
    seed: int = Field(default=0, description="seed of the draws")
    stops: tuple[str, ...] = Field(default=(), description="texts that end an answer, beside the model's end tokens")

    @model_validator(mode="after")
    def _draws(self) -> Config:
        if self.temperature == 0 and self.top_p < 1:
            raise ValueError("top_p below 1 needs a temperature above 0: nothing is drawn at temperature 0")
        return self


def check(items: Sequence[Item], config: Config) -> None:
    """Finds what would make the task fail before any model is loaded; all of it at once.

    Raises:
        UserError: a metric is unknown.
        DataError: rows without a prompt, or with a reference that a metric cannot score against.
    """
    problems = [
        Problem("the prompt is empty: nothing to generate from", item.where) for item in items if not item.prompt_ids
    ]
    references, places = [(item.reference,) for item in items], [item.where for item in items]
    problems += measured.check_metrics(config.metrics, references, places)
    raise_all(
        DataError, sorted(problems, key=lambda problem: places.index(problem.where) if problem.where in places else -1)
    )


def run(engine: Engine, items: Sequence[Item], config: Config, *, screen: Screen) -> list[TaskResult]:
    """Generates one answer a row and scores it under each metric; one result a metric.

    Raises:
        DataError: a prompt is empty or fills the model's positions.
        UserError: a metric is unknown.
    """
    started = time.perf_counter()
    _check_room(items, engine.positions)
    prompts = [
        Prompt(
            tuple(item.prompt_ids),
            config.max_new_tokens,
            config.stops,
            config.temperature,
            config.top_p,
            config.seed,
            (("user", item.prompt_text),),
        )
        for item in items
    ]
    texts = [answer.text for answer in engine.generate(prompts, screen, "generation")]
    references = [(item.reference,) for item in items]
    seconds = time.perf_counter() - started
    found = [scoring.score(name, options, texts, references) for name, options in measured.wished(config.metrics)]
    return [measured.result_of("generation", scores, texts, items, seconds=seconds) for scores in found]


def _check_room(items: Sequence[Item], positions: int | None) -> None:
    for item in items:
        length = len(item.prompt_ids)
        if not length:
            raise DataError("the prompt is empty: nothing to generate from", where=item.where)
        if positions is not None and length >= positions:
            raise DataError(
                f"the prompt fills the model's {positions} positions ({length} tokens): nothing can be generated",
                where=item.where,
                fix="leave the row out, shorten its prompt, or set eval.generate to false",
            )
