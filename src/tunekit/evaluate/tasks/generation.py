"""Answers generated from the evaluation rows' prompts, scored against the answers in the data."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tunekit.core.errors import DataError
from tunekit.core.progress import Screen
from tunekit.core.registry import METRICS
from tunekit.evaluate.batches import batches
from tunekit.evaluate.contract import Item, TaskResult

if TYPE_CHECKING:
    import torch


class Config(BaseModel):
    """Options of the task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int = Field(default=64, ge=1, description="the longest answer, in tokens")
    metrics: tuple[str, ...] = Field(default=("exact_match",), description="what scores the answers")
    temperature: float = Field(default=0.0, ge=0, description="0 takes the likeliest token; above, tokens are drawn")
    top_p: float = Field(default=1.0, gt=0, le=1, description="draw from the likeliest tokens of this total chance")
    seed: int = Field(default=0, description="seed of the draws")
    stop_ids: tuple[int, ...] = Field(default=(), description="further ids of tokens that end an answer")

    @model_validator(mode="after")
    def _draws(self) -> Config:
        if self.temperature == 0 and self.top_p < 1:
            raise ValueError("top_p below 1 needs a temperature above 0: nothing is drawn at temperature 0")
        return self


def run(
    model: Any,
    tokenizer: Any,
    items: Sequence[Item],
    config: Config,
    *,
    device: torch.device,
    batch_size: int,
    screen: Screen,
) -> list[TaskResult]:
    """Generates one answer a row and scores it under each metric; one result a metric.

    The model's own generation defaults (sampling, penalties) are not used, so that two models are asked alike; its end
    tokens are. Greedy answers do not depend on ``batch_size`` but for rounding; drawn ones do.

    Raises:
        DataError: a prompt is empty or fills the model's positions.
        UserError: a metric is unknown.
    """
    started = time.perf_counter()
    metrics = [(name, METRICS.load(name)) for name in config.metrics]
    texts = _texts(model, tokenizer, items, config, device, batch_size, screen)
    references = [item.reference for item in items]
    scores = [(name, metric, metric.score(texts, references, metric.Config())) for name, metric in metrics]
    return [
        TaskResult(
            name="generation",
            metric=name,
            higher_is_better=metric.HIGHER_IS_BETTER,
            statistic="mean",
            values=tuple(values),
            weights=(1.0,) * len(items),
            items=tuple(items),
            texts=tuple(texts),
            seconds=time.perf_counter() - started,
        )
        for name, metric, values in scores
    ]


def _texts(
    model: Any,
    tokenizer: Any,
    items: Sequence[Item],
    config: Config,
    device: torch.device,
    batch_size: int,
    screen: Screen,
) -> list[str]:
    """The answers' texts, in the order of ``items``."""
    from tunekit.evaluate.mode import evaluating, has_virtual_tokens, plain_model

    room = _room(items, config.max_new_tokens, _positions(plain_model(model)), screen)
    # PEFT sets virtual tokens before the padding, which moves them away from the prompt: such batches go unpadded
    jobs = _jobs(items, room, batch_size, padding=not has_virtual_tokens(model))
    texts = [""] * len(items)
    stops = stop_tokens(model, tokenizer, config.stop_ids)
    with (
        evaluating(model, config.seed if config.temperature > 0 else None),
        _asked(plain_model(model), tokenizer, config, stops) as settings,
        screen.step("generation", len(items), "rows") as step,
    ):
        for batch, new_tokens in jobs:
            settings.max_new_tokens = new_tokens
            answers = _generate(model, [items[index].prompt_ids for index in batch], settings, device)
            for index, ids in zip(batch, answers, strict=True):
                end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
                texts[index] = tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            step.advance(len(batch))
    return texts


def stop_tokens(model: Any, tokenizer: Any, extra: Sequence[int] = ()) -> frozenset[int]:
    """Ids that end an answer: the tokenizer's end token, the model's, and ``extra``."""
    from tunekit.evaluate.mode import plain_model

    found = set(extra)
    for ids in (tokenizer.eos_token_id, plain_model(model).generation_config.eos_token_id):
        found.update(ids if isinstance(ids, list | tuple) else () if ids is None else (ids,))
    return frozenset(found)


def _positions(model: Any) -> int | None:
    """How many positions the model knows; None for a kind of model that has no such bound."""
    positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return positions


def _room(items: Sequence[Item], new_tokens: int, positions: int | None, screen: Screen) -> list[int]:
    """How many tokens each row may generate: ``new_tokens``, or fewer where the model's positions end."""
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
    room = [new_tokens if positions is None else min(new_tokens, positions - len(item.prompt_ids)) for item in items]
    short = sum(tokens < new_tokens for tokens in room)
    if short:
        screen.warn(f"{short} of {len(items)} prompts leave room for fewer than {new_tokens} tokens of answer")
    return room


def _jobs(items: Sequence[Item], room: Sequence[int], batch_size: int, *, padding: bool) -> list[tuple[list[int], int]]:
    """Batches of rows that may generate equally many tokens, with that number."""
    jobs = []
    for new_tokens in sorted(set(room), reverse=True):
        rows = [index for index, tokens in enumerate(room) if tokens == new_tokens]
        found = batches([len(items[index].prompt_ids) for index in rows], rows=batch_size, padding=padding)
        jobs += [([rows[place] for place in batch], new_tokens) for batch in found]
    return jobs


@contextmanager
def _asked(model: Any, tokenizer: Any, config: Config, stops: frozenset[int]) -> Iterator[Any]:
    """Puts our settings in the place of the model's own, which ``generate`` would mix in, and puts those back after."""
    from transformers import GenerationConfig

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops, default=0)
    drawn = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": 0}
    settings = GenerationConfig(
        use_cache=True,
        num_beams=1,
        pad_token_id=pad,
        eos_token_id=sorted(stops) or None,
        **(drawn if config.temperature > 0 else {"do_sample": False}),
    )
    own = model.generation_config
    model.generation_config = settings
    try:
        yield settings
    finally:
        model.generation_config = own


def _generate(model: Any, prompts: Sequence[Sequence[int]], settings: Any, device: torch.device) -> list[list[int]]:
    """The new token ids of each of B prompts, padding after the end included."""
    import torch

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), settings.pad_token_id, dtype=torch.long)  # (B, T), padded on the left
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    found = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings)
    answers: list[list[int]] = found[:, width:].tolist()
    return answers
