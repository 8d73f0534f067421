"""Questions of raw rows, answered freely and scored against the right answers."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tunekit.core.errors import DataError
from tunekit.core.progress import Screen
from tunekit.core.registry import METRICS
from tunekit.evaluate.choices import Shown, in_reach, refuse, results, with_examples
from tunekit.evaluate.contract import Engine, Prompt, Row, TaskResult
from tunekit.evaluate.fewshot import FewShot, joined
from tunekit.evaluate.measured import Wish, check_metrics, wished
from tunekit.evaluate.prompting import Prompter
from tunekit.evaluate.scoring import Scores, score
from tunekit.evaluate.template import Template, fill, text_of, value

READS = "rows"


class Config(BaseModel):
    """Options of the task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Template = Field(description='what the model goes on from: "Question: {question}\\nAnswer:"')
    reference: Template | None = Field(
        default=None,
        description="column or template of the right answer, a list when there are several; some metrics need none",
    )
    metrics: tuple[Wish, ...] = Field(
        default=("exact_match",), min_length=1, description="what scores the answers: names, or {name: options}"
    )
    max_new_tokens: int = Field(default=64, ge=1, description="the longest answer, in tokens")
    stops: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="texts that end an answer; they are not part of it"
    )
    temperature: float = Field(default=0.0, ge=0, description="0 takes the likeliest token; above, tokens are drawn")
    top_p: float = Field(default=1.0, gt=0, le=1, description="draw from the likeliest tokens of this total chance")
    samples: int = Field(default=1, ge=1, description="answers drawn to each prompt, for metrics such as pass_at_k")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(0,), min_length=1, description="seeds of the draws; a row's value is the mean over them"
    )
    separator: str = Field(default=" ", description="between prompt and answer of the few_shot examples")
    few_shot: FewShot | None = Field(default=None, description="solved examples before every prompt")
    chat: bool = Field(default=False, description="ask through the model's chat template")
    system: str | None = Field(default=None, description="the system turn of the chat")

    @model_validator(mode="after")
    def _draws(self) -> Config:
        if self.temperature == 0 and (self.top_p < 1 or self.samples > 1 or len(self.seeds) > 1):
            raise ValueError("top_p, samples and seeds need a temperature above 0: nothing is drawn at temperature 0")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("the same seed twice draws the same answers twice")
        if self.system is not None and not self.chat:
            raise ValueError("a system turn needs chat: true")
        if self.few_shot is not None and self.reference is None:
            raise ValueError("few_shot needs reference: the examples' answers")
        return self


@dataclass(frozen=True)
class _Question:
    """One row: its prompt and its right answers."""

    where: str
    prompt: str
    right: tuple[str, ...]

    def shown(self) -> Shown:
        """The row for reports."""
        return Shown(self.where, self.prompt, " / ".join(self.right))


def check(items: Sequence[Row], config: Config) -> None:
    """Finds all rows that cannot be asked or scored.

    Raises:
        DataError: a column is missing, a metric cannot use a row's right answer, a row is among the examples, or there
            are no rows.
        UserError: a metric is unknown or has no such option; the file of examples is missing.
    """
    _questions(items, config)


def run(engine: Engine, items: Sequence[Row], config: Config, *, screen: Screen) -> list[TaskResult]:
    """Generates answers to every row and scores them; one result a metric.

    With several seeds, or several samples under a metric that takes one answer, each row's value (and each of its
    totals) is the mean over them. The texts are those of the first.

    Raises:
        DataError, UserError: as `check` does; DataError for a prompt that leaves no room for an answer.
    """
    started = time.perf_counter()
    questions, before = _questions(items, config)
    prompter = Prompter(engine.tokenizer, config.chat)
    prompts = [_prompt(prompter, before + question.prompt, config) for question in questions]
    in_reach(engine, [len(p.ids) + 1 for p in prompts], [question.where for question in questions], "questions")
    # seeds times samples distinct draws of each prompt
    draws = [seed * config.samples + n for seed in config.seeds for n in range(config.samples)]
    requests = [replace(prompt, seed=draw) for draw in draws for prompt in prompts]
    answers = [answer.text for answer in engine.generate(requests, screen, "questions")]
    texts = [answers[start : start + len(prompts)] for start in range(0, len(answers), len(prompts))]  # (draws, N)
    right = [question.right for question in questions]
    found = [_scored(name, options, texts, right, config.samples) for name, options in wished(config.metrics)]
    return results("questions", found, [question.shown() for question in questions], texts[0], started)


def _prompt(prompter: Prompter, text: str, config: Config) -> Prompt:
    prompt = prompter.prompt(
        text, config.max_new_tokens, stops=config.stops, temperature=config.temperature, top_p=config.top_p
    )
    if config.system is None:
        return prompt
    messages = (("system", config.system), *prompt.messages)
    if prompter.tokenizer is None:  # the engine takes messages
        return replace(prompt, messages=messages)
    ids = prompter.ids_of([{"role": role, "content": content} for role, content in messages])
    return replace(prompt, ids=ids, messages=messages)


def _scored(
    name: str,
    options: Mapping[str, Any],
    texts: Sequence[Sequence[str]],
    right: Sequence[tuple[str, ...]],
    samples: int,
) -> Scores:
    """One metric over D draws of N answers: ``texts`` is (D, N), the samples of one seed side by side."""
    if getattr(METRICS.load(name), "NEEDS_SAMPLES", False):
        of_seeds = [texts[start : start + samples] for start in range(0, len(texts), samples)]
        found = [score(name, options, part[0], right, samples=list(zip(*part))) for part in of_seeds]
    else:
        found = [score(name, options, part, right) for part in texts]
    return _mean(found)


def _mean(found: Sequence[Scores]) -> Scores:
    """The mean over draws of each row's value and totals."""
    if len(found) == 1:
        return found[0]
    values = tuple(math.fsum(of_row) / len(found) for of_row in zip(*(one.values for one in found)))
    totals = tuple(
        tuple(math.fsum(column) / len(found) for column in zip(*of_row))
        for of_row in zip(*(one.totals for one in found))
    )
    return replace(found[0], values=values, totals=totals)


def _questions(items: Sequence[Row], config: Config) -> tuple[list[_Question], str]:
    """The questions, and the text of the examples that stands before each."""
    rows, examples, problems = with_examples(items, config.few_shot, lambda row: _asked(row, config))
    whole = [question for question in rows if question is not None]
    problems += check_metrics(config.metrics, [q.right for q in whole], [q.where for q in whole])
    refuse(problems)
    pairs = [(question.prompt, question.right[0]) for question in examples if question is not None]
    return whole, joined(config.few_shot, pairs, config.separator)


def _asked(row: Row, config: Config) -> _Question:
    """One row.

    Raises:
        DataError: it cannot be asked.
    """
    prompt = fill(config.prompt, row)
    if not prompt.strip():
        raise DataError("the prompt is empty: nothing to generate from", where=row.where, fix="leave the row out")
    if config.reference is None:
        return _Question(row.where, prompt, ())
    found = value(config.reference, row)
    right = found if isinstance(found, list | tuple) else [found]
    if not right:
        raise DataError(f"column '{config.reference}' holds no answer", where=row.where, fix="leave the row out")
    return _Question(row.where, prompt, tuple(text_of(one, config.reference, row.where) for one in right))
