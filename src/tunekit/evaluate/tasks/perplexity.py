"""Perplexity of the evaluation rows, over the tokens that training would learn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from tunekit.core.progress import Screen
from tunekit.evaluate.batches import batches
from tunekit.evaluate.contract import Item, TaskResult

if TYPE_CHECKING:
    import torch

LOGIT_ROWS = 512  # positions whose logits are in float32 at one time: 0.3 GB for a vocabulary of 150,000


class Config(BaseModel):
    """Options of the task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_tokens: int = Field(default=4096, ge=1, description="tokens of a batch, padding included")


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
    """Negative log-likelihood of every row's trained tokens.

    The first token of a row has no context and is not counted. Perplexity is exp(sum of the rows' likelihoods / sum
    of their counted tokens). A likelihood that is nan stays nan.
    """
    from tunekit.evaluate.mode import evaluating

    started = time.perf_counter()
    counts = [sum(map(bool, item.trained[1:])) for item in items]
    counted = [index for index, count in enumerate(counts) if count]
    likelihood = [0.0] * len(items)
    lengths = [len(items[index].input_ids) for index in counted]
    with evaluating(model), screen.step("perplexity", len(counted), "rows") as step:
        for batch in batches(lengths, rows=batch_size, tokens=config.batch_tokens):
            chosen = [counted[position] for position in batch]
            for index, value in zip(chosen, _batch(model, [items[index] for index in chosen], device), strict=True):
                likelihood[index] = value
            step.advance(len(batch))
    return [
        TaskResult(
            name="perplexity",
            metric="perplexity",
            higher_is_better=False,
            statistic="perplexity",
            values=tuple(likelihood),
            weights=tuple(map(float, counts)),
            items=tuple(items),
            seconds=time.perf_counter() - started,
        )
    ]


def _batch(model: Any, items: Sequence[Item], device: torch.device) -> list[float]:
    """Negative log-likelihood in nats of each of B rows, every one of which has a counted token."""
    import torch
    from torch.nn.functional import cross_entropy

    from tunekit.evaluate.logits import logits_at

    width = max(len(item.input_ids) for item in items)
    ids = torch.zeros(len(items), width, dtype=torch.long)  # (B, T); what stands in the padding has no effect
    rows: list[int] = []
    columns: list[int] = []
    for row, item in enumerate(items):
        assert len(item.trained) == len(item.input_ids), (item.where, len(item.trained), len(item.input_ids))
        ids[row, : len(item.input_ids)] = torch.tensor(item.input_ids)
        at = [position - 1 for position, trained in enumerate(item.trained) if trained and position]
        columns += at
        rows += [row] * len(at)
    row_of, column_of = torch.tensor(rows), torch.tensor(columns)  # (L,), (L,)
    labels = ids[row_of, column_of + 1]  # (L,): the token after the position that predicts it
    logits = logits_at(model, ids.to(device), row_of, column_of)  # (L, V)
    sums = torch.zeros(len(items), dtype=torch.float64)
    for start in range(0, len(rows), LOGIT_ROWS):
        part = slice(start, start + LOGIT_ROWS)
        losses = cross_entropy(logits[part].float(), labels[part].to(logits.device), reduction="none")
        sums.index_add_(0, row_of[part], losses.cpu().double())
    values: list[float] = sums.tolist()
    return values
