"""Texts put into classes: the label is chosen that the model finds the likeliest after the prompt."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tunekit.core.errors import Problem
from tunekit.core.progress import Screen
from tunekit.core.registry import did_you_mean
from tunekit.evaluate.choices import Shown, likeliest, likelihoods, prompter, refuse, results, softmax, with_examples
from tunekit.evaluate.contract import Engine, Row, TaskResult
from tunekit.evaluate.fewshot import FewShot, joined
from tunekit.evaluate.measured import Wish, check_metrics, wished
from tunekit.evaluate.scoring import score
from tunekit.evaluate.template import Template, blank, fill, text_of, value

READS = "rows"


def _as_text(found: Any) -> Any:
    return text_of(found, "labels", "") if isinstance(found, bool | int) else found  # as the data's are read


Known = Annotated[str, BeforeValidator(_as_text)]
Label = Annotated[Known, Field(min_length=1)]


class Config(BaseModel):
    """Options of the task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Template = Field(description='what stands before the label: "Message: {text}\\nIntent:"')
    label: Template = Field(default="label", description="column or template of the right label")
    labels: tuple[Label, ...] | dict[Known, Label] | None = Field(
        default=None,
        description="all labels, or the data's labels and the texts that stand for them, {0: negative, 1: positive}; "
        "default: those found in the rows",
    )
    metrics: tuple[Wish, ...] = Field(
        default=("accuracy", {"f1": {"average": "macro"}}),
        min_length=1,
        description="what scores the labels: names, or {name: options}",
    )
    normalise: bool = Field(default=False, description="divide a label's log-likelihood by its characters")
    calibrate: bool = Field(
        default=False, description="subtract the label's log-likelihood after a prompt without content"
    )
    content_free: str = Field(default="N/A", description="stands for every column in the prompt without content")
    separator: str | None = Field(
        default=None, description="between prompt and label; default: a space, or nothing in a chat"
    )
    few_shot: FewShot | None = Field(default=None, description="solved examples before every prompt")
    chat: bool = Field(default=False, description="ask through the model's chat template")

    @model_validator(mode="after")
    def _several(self) -> Config:
        texts = self.labels.values() if isinstance(self.labels, dict) else self.labels
        if texts is not None and (len(texts) < 2 or len(set(texts)) < len(texts)):
            raise ValueError("two labels or more are needed, each with a text of its own")
        return self


@dataclass(frozen=True)
class _Text:
    """One row: its prompt, and its label as the data has it."""

    where: str
    prompt: str
    label: str


@dataclass(frozen=True)
class _Asked:
    """What is asked: N rows, the texts of their labels, the texts of all labels, and the examples before each."""

    rows: tuple[_Text, ...]
    right: tuple[str, ...]
    labels: tuple[str, ...]
    before: str

    def shown(self) -> list[Shown]:
        """The rows for reports."""
        return [Shown(row.where, row.prompt, right) for row, right in zip(self.rows, self.right)]


def check(items: Sequence[Row], config: Config) -> None:
    """Finds all rows that cannot be asked or scored.

    Raises:
        DataError: a column is missing, a label is not among the labels, there are fewer than two of these, a row is
            among the examples, or there are no rows.
        UserError: a metric is unknown or has no such option; the file of examples is missing.
    """
    _asked(items, config)


def run(engine: Engine, items: Sequence[Row], config: Config, *, screen: Screen) -> list[TaskResult]:
    """Scores every label after every prompt; one result a metric, whose texts are the labels chosen.

    A label's score is its log-likelihood in nats, first calibrated (Zhao et al., Calibrate Before Use, arXiv
    2102.09690, by subtraction), then normalised, where asked for. Its probability is its share of exp(score) among all
    labels. The first of equals is chosen; none (an empty text) where a likelihood is not a number.

    Raises:
        DataError, UserError: as `check` does; DataError for a text longer than what the model reads.
    """
    started = time.perf_counter()
    asked = _asked(items, config)
    chosen: list[str] = []
    probabilities: list[float] = []
    for scores in _scores(engine, asked, config, screen):
        best = likeliest(scores)
        chosen.append(asked.labels[best] if best is not None else "")
        probabilities.append(softmax(scores)[best] if best is not None else math.nan)
    right = [(label,) for label in asked.right]
    found = [
        score(name, options, chosen, right, probabilities=probabilities) for name, options in wished(config.metrics)
    ]
    return results("classification", found, asked.shown(), chosen, started)


def _scores(engine: Engine, asked: _Asked, config: Config, screen: Screen) -> list[list[float]]:
    """(N, labels) each label's score in each row."""
    writer = prompter(engine, config.chat, "classification")
    separator = config.separator if config.separator is not None else "" if config.chat else " "
    prompts = [(row.prompt, row.where) for row in asked.rows]
    if config.calibrate:
        prompts.append((blank(config.prompt, config.content_free), "the prompt without content"))
    pairs = [(prompt, where, label) for prompt, where in prompts for label in asked.labels]
    requests = [writer.likelihood(asked.before + prompt, separator + label, where) for prompt, where, label in pairs]
    found = likelihoods(engine, requests, [where for _, where, _ in pairs], screen, "classification")
    count = len(asked.labels)
    rows = [found[start : start + count] for start in range(0, len(found), count)]
    free = rows.pop() if config.calibrate else [0.0] * count
    lengths = [len(label) if config.normalise else 1 for label in asked.labels]
    return [[(x - y) / length for x, y, length in zip(row, free, lengths)] for row in rows]


def _asked(items: Sequence[Row], config: Config) -> _Asked:
    """The rows, their labels and the examples.

    Raises:
        DataError: as `check` does.
    """

    def read(row: Row) -> _Text:
        return _Text(row.where, fill(config.prompt, row), text_of(value(config.label, row), config.label, row.where))

    rows, examples, problems = with_examples(items, config.few_shot, read)
    whole = [row for row in (*rows, *examples) if row is not None]
    if isinstance(config.labels, dict):
        texts: Mapping[str, str] = config.labels
    else:
        texts = {label: label for label in config.labels or sorted({row.label for row in whole})}
    if len(texts) < 2 and not problems:
        fix = "name them: labels: [...]"
        what = f"two labels or more are needed, the rows have {len(texts)} ({', '.join(texts)})"
        problems.append(Problem(what, whole[0].where, fix))
    problems += [
        Problem(f"'{row.label}' is none of the {len(texts)} labels", row.where, did_you_mean(row.label, texts))
        for row in whole
        if row.label not in texts
    ]
    known = [row for row in rows if row is not None and row.label in texts]
    right = [texts[row.label] for row in known]
    problems += check_metrics(config.metrics, [(label,) for label in right], [row.where for row in known])
    refuse(problems)
    separator = config.separator if config.separator is not None else " "
    pairs = [(row.prompt, texts[row.label]) for row in examples if row is not None]
    return _Asked(tuple(known), tuple(right), tuple(texts.values()), joined(config.few_shot, pairs, separator))
