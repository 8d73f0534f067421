"""Pairs of a chosen and a rejected answer: which one the model finds the likelier, or a reward model the better."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tunekit.core.errors import DataError, Problem, UserError, raise_all
from tunekit.core.progress import Screen
from tunekit.evaluate.choices import Shown, every, in_reach, prompter, refuse, refuse_empty, results
from tunekit.evaluate.contract import Engine, Likelihood, Row, TaskResult
from tunekit.evaluate.pairs import PairItem, likelier, margin_scores, preferred
from tunekit.evaluate.prompting import Prompter
from tunekit.evaluate.template import Template, text_of, value

READS = "pairs"
COLUMNS = ("prompt", "chosen", "rejected")
"""Keys that name columns."""
ROLES = {"human": "user", "gpt": "assistant"}
Turns = tuple[tuple[str, str], ...]


class Config(BaseModel):
    """Options of the task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Template | None = Field(
        default="prompt",
        description="column or template of the prompt; it may hold a conversation. null: chosen and rejected begin "
        "with it",
    )
    chosen: Template = Field(default="chosen", description="column or template of the better answer")
    rejected: Template = Field(default="rejected", description="column or template of the worse answer")
    separator: str = Field(default="", description="between prompt and answer; not used in a chat")
    normalise: bool = Field(default=False, description="compare likelihoods a token, not those of whole answers")
    chat: bool = Field(default=False, description="ask through the model's chat template; conversations need it")
    by: Literal["likelihood", "reward"] | None = Field(
        default=None, description="what judges: how likely an answer is, or a reward model's score; default: what the "
        "model gives"
    )  # fmt: skip


@dataclass(frozen=True)
class _Pair:
    """One row: what stands before the answers, as text or as turns, and the two answers."""

    where: str
    before: tuple[str | Turns, str | Turns]
    answers: tuple[str, str]

    def shown(self) -> Shown:
        """The row for reports."""
        before = self.before[0]
        text = before if isinstance(before, str) else "\n".join(f"{role}: {content}" for role, content in before)
        return Shown(self.where, text, self.answers[0])


def columns(config: Config, where: str) -> dict[str, str]:
    """Columns that are named for a reward model, whose rows are read and rendered as `tunekit reward` does.

    Args:
        config: of the task.
        where: the task's name.

    Raises:
        UserError: keys that have no effect there, each by its name.
    """
    given = config.model_fields_set
    named = {key: getattr(config, key) for key in COLUMNS if key in given}
    told = {key: "it takes the name of a column alone" for key, name in named.items() if not _is_column(name)}
    if "chat" in given and not config.chat:
        told["chat"] = "conversations are rendered with the chat template, as in its training"
    if "separator" in given:
        told["separator"] = "conversations are rendered with the chat template, as in its training"
    if config.normalise:
        told["normalise"] = "a score belongs to the whole answer"
    what = "'{}' cannot be honoured for a reward model: {}"
    fix = "leave it out; its rows are read as by `tunekit reward`, with the source's format and columns"
    raise_all(UserError, [Problem(what.format(key, why), where, fix) for key, why in told.items()])
    return {key: str(name) for key, name in named.items()}


def _is_column(name: str | None) -> bool:
    return name is not None and not set(name) & set("{}.")


def check(items: Sequence[Row | PairItem], config: Config) -> None:
    """Finds all rows that hold no pair; pairs in tokens were looked at when they were made.

    Raises:
        DataError: a column is missing, an answer is empty, a conversation does not end with one or is asked without
            ``chat``, or there are no rows.
    """
    refuse_empty(items)
    rows = [item for item in items if isinstance(item, Row)]
    if rows:
        _pairs(rows, config)


def run(engine: Engine, items: Sequence[Row | PairItem], config: Config, *, screen: Screen) -> list[TaskResult]:
    """Compares both answers of each row after the prompt.

    ``preference_accuracy`` is 1 where the chosen one is likelier, or has the higher score; 0.5 where both are equal.
    ``margin``: how much likelier, in nats; by answer, or by token with ``normalise``; or by how much the score is
    higher. The end token of an answer in raw rows has no likelihood; in pairs of tokens, it is one of the answer's.

    Args:
        engine: of a model that writes, or of a reward model with ``by: reward``.
        items: raw rows; or pairs in the model's tokens, which a reward model needs.
        config: of the task.
        screen: where progress goes.

    Raises:
        DataError: as `check` does, and for a text longer than what the model reads.
    """
    refuse_empty(items)
    tokens = [item for item in items if isinstance(item, PairItem)]
    rows = [item for item in items if isinstance(item, Row)]
    assert len(items) in (len(tokens), len(rows)), (len(tokens), len(rows))
    if config.by == "reward":
        assert not rows, "a reward model's rows are rendered and encoded as in its training"
        return preferred(engine, tokens, screen)
    if tokens:
        return likelier(engine, tokens, screen, normalise=config.normalise)
    return _of_rows(engine, rows, config, screen)


def _of_rows(engine: Engine, items: Sequence[Row], config: Config, screen: Screen) -> list[TaskResult]:
    """By the likelihoods of the answers in raw rows, which are written here."""
    started = time.perf_counter()
    pairs = _pairs(items, config)
    writer = prompter(engine, config.chat, "preference")
    asked = [
        (pair.where, _request(writer, before, answer, config.separator, pair.where))
        for pair in pairs
        for before, answer in zip(pair.before, pair.answers)
    ]
    in_reach(engine, [len(request.ids) for _, request in asked], [where for where, _ in asked], "preference")
    scored = engine.likelihoods([request for _, request in asked], screen, "preference")
    likely = [answer.value / (answer.tokens if config.normalise else 1) for answer in scored]
    margins = tuple(chosen - rejected for chosen, rejected in zip(likely[::2], likely[1::2]))
    found = margin_scores(margins, "nats a token" if config.normalise else "nats an answer")
    return results("preference", found, [pair.shown() for pair in pairs], (), started)


def _request(prompter: Prompter, before: str | Turns, answer: str, separator: str, where: str) -> Likelihood:
    if isinstance(before, str):
        return prompter.likelihood(before, ("" if prompter.chat else separator) + answer, where)
    context = prompter.ids_of([{"role": role, "content": content} for role, content in before])
    target = tuple(prompter.tokenizer(answer, add_special_tokens=False)["input_ids"])
    return Likelihood(context + target, (False,) * len(context) + (True,) * len(target))


def _pairs(items: Sequence[Row], config: Config) -> list[_Pair]:
    pairs, problems = every(items, lambda row: _pair(row, config))
    refuse(problems)
    return [pair for pair in pairs if pair is not None]


def _pair(row: Row, config: Config) -> _Pair:
    """One row.

    Raises:
        DataError: it holds no pair.
    """
    prompt = value(config.prompt, row) if config.prompt is not None else ""
    found = [_answer(prompt, name, row, config) for name in (config.chosen, config.rejected)]
    (one, chosen), (other, rejected) = found
    return _Pair(row.where, (one, other), (chosen, rejected))


def _answer(prompt: Any, name: str, row: Row, config: Config) -> tuple[str | Turns, str]:
    """What stands before one of the two answers, and the answer."""
    answer = value(name, row)
    if _is_text(prompt) and _is_text(answer):
        before, text = text_of(prompt, config.prompt or "", row.where), text_of(answer, name, row.where)
        if not text.strip():
            raise DataError(f"the answer '{name}' is empty", where=row.where, fix="leave the row out")
        if config.chat and not before:
            raise DataError("a chat needs a prompt, or conversations", where=row.where, fix="chat: false")
        return before, text
    if not config.chat:
        fix = "chat: true, or name the text inside them"
        raise DataError("a conversation is asked through the model's chat template", where=row.where, fix=fix)
    before_turns = (("user", str(prompt)),) if _is_text(prompt) and prompt != "" else _turns(prompt, "prompt", row)
    whole = before_turns + ((("assistant", str(answer)),) if _is_text(answer) else _turns(answer, name, row))
    if len(whole) < 2 or whole[-1][0] != "assistant" or not whole[-1][1].strip():
        fix = "leave the row out, or correct chosen and rejected"
        raise DataError(f"'{name}' does not end with an answer of the assistant", where=row.where, fix=fix)
    return whole[:-1], whole[-1][1]


def _is_text(found: Any) -> bool:
    return found is None or isinstance(found, str | int | float)


def _turns(found: Any, name: str, row: Row) -> Turns:
    """A conversation: a list of turns, or one turn, of role and content or of from and value."""
    turns = []
    for turn in [found] if isinstance(found, Mapping) else found or ():
        role = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
        content = turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise DataError(f"a turn of '{name}' has no role and content that are text", where=row.where)
        turns.append((ROLES.get(role, role), content))
    return tuple(turns)
