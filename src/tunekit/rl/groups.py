"""A trainer on groups: a beginning and the answers that go on from it, whose tokens' log-probabilities it takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunekit.data.collate import Collator
from tunekit.kernels.segments import flatten, padded, rounded, sequences
from tunekit.train.causal import CausalTrainer
from tunekit.train.isolation import shares_prefix
from tunekit.train.trainer import Share

_FOR_LAYOUT = ("input_ids", "labels", "position_ids", "rows", "attention_mask")
"""Columns of a batch that the losses do not get."""


@dataclass(frozen=True)
class Groups:
    """The answers of a batch, ``S`` of them, of ``B`` groups that are no fillers.

    Args:
        logps: (S,) log-probability of each answer's trained tokens, summed, in nats, as `tail_weight` has it.
        whole: (S,) the same, every token counted fully.
        tokens: (S,) how many these are.
        first: (B,) index of each group's first answer; its others follow.
        each: (L,) log-probability of each trained token.
        owner: (L,) the answer that it belongs to.
        correct: (L,) whether it was the likeliest.
        hidden: (L, E) the state that it was predicted from.
        entropy: (L,) of the prediction, in nats; None unless asked for.
        outputs: of the model.
    """

    logps: torch.Tensor
    whole: torch.Tensor
    tokens: torch.Tensor
    first: torch.Tensor
    each: torch.Tensor
    owner: torch.Tensor
    correct: torch.Tensor
    hidden: torch.Tensor
    entropy: torch.Tensor | None
    outputs: Any


@dataclass(frozen=True)
class GroupCollator(Collator):
    """As `Collator`, with the log-probabilities of the reference: ``reference_logps`` (B, R), filled up with nan."""

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """The batch."""
        batch = super().__call__(examples)
        given = [list(example.get("reference_logps") or ()) for example in examples]
        size, widest = len(given), max(map(len, given))
        if widest:
            batch["reference_logps"] = torch.tensor([row + [torch.nan] * (widest - len(row)) for row in given])
        if "branches" not in batch:  # of fillers alone: the losses look for what other batches have
            batch["branches"] = torch.zeros((size, 1), dtype=torch.long)
            batch |= {"score": torch.full((size,), torch.nan), "reference_logps": torch.full((size, 2), torch.nan)}
        return batch


class GroupTrainer(CausalTrainer):
    """A step's items are the groups of the global batch; what they cost, a method's own trainer says.

    A group's beginning is computed once where the model can share it (``shares``).
    """

    shares = False
    temperature = 1.0
    tail_weight: float | None = None
    """How much an answer's tokens count that come after as many as the shortest answer of its group has; None: fully
    (LD-DPO, arXiv 2409.06411)."""
    train_dataset: Any
    eval_dataset: Any

    def look_at_model(self, padded_because: str) -> None:
        """Finds out too whether beginnings can be shared."""
        super().look_at_model(padded_because)
        self.shares = not padded_because and shares_prefix(self.model, self.accelerator.autocast())

    def lay_out(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch of groups as the model reads it, and the columns of the losses."""
        if self.padded_because:
            laid_out = padded(inputs)
        else:
            laid_out = flatten(inputs, few_shapes=self.few_shapes, shared=self.shares)
        return laid_out | {name: value for name, value in inputs.items() if name not in _FOR_LAYOUT}

    def positions_of(self, inputs: dict[str, Any]) -> int:
        """Positions that the model computes for a batch of the collator."""
        if self.padded_because:
            return int(self.lay_out(inputs)["input_ids"].numel())
        tokens, sizes = inputs["tokens"].clamp(min=1), inputs["branches"]
        again = 0 if self.shares else (tokens - sizes.sum(1)) * (sequences(inputs) - 1)  # beginnings that are repeated
        count = int((tokens + again).sum())
        return rounded(count) if self.few_shapes else count

    def groups_of(self, model: nn.Module, inputs: dict[str, Any], *, entropy: bool = False) -> Groups:
        """Log-probabilities of the answers of a batch that was laid out."""
        keep, targets, owner = inputs["keep"], inputs["targets"], inputs["owner"]
        found = self.head.logps(
            model, self.for_model(inputs), keep, targets, temperature=self.temperature, entropy=entropy
        )
        counts = sequences(inputs)
        size = int(counts.sum())
        first = (counts.cumsum(0) - counts)[inputs["tokens"] > 0]
        tokens = torch.bincount(owner, minlength=size)
        logps = whole = _sums(found.logps, owner, size)
        if self.tail_weight is not None:
            logps = _sums(found.logps * _shares(owner, tokens, counts, self.tail_weight), owner, size)
        return Groups(
            logps, whole, tokens, first, found.logps, owner, found.correct, found.hidden, found.entropy, found.outputs
        )

    def noted(self, model: nn.Module, count: int, **totals: torch.Tensor) -> None:
        """Counts sums over ``count`` items towards the means of the next logged line, or of the evaluation."""
        sums = self.sums if model.training else self.held_out_sums
        for name, total in totals.items():
            sums.add(name, total.detach(), count)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Groups of a step, over all ranks: Trainer's own counts labels."""
        own = sum(int((batch["tokens"] > 0).sum()) for batch in batch_samples)
        return torch.tensor(self.ranks.sum([own])[0], device=device)


class LossTrainer(GroupTrainer, ABC):
    """A step's loss is a mean over the groups of the global batch, each of which has a loss of its own."""

    def share_of(self, model: nn.Module, inputs: dict[str, Any]) -> Share:
        """The losses of a batch that was laid out; its items are the groups."""
        groups = self.groups_of(model, inputs)
        losses = self.losses(model, groups, inputs)
        nothing = groups.hidden.sum() * 0  # a batch of fillers has a gradient too: other ranks wait for it
        return Share(losses.sum() + nothing, len(losses), groups.outputs)

    @abstractmethod
    def losses(self, model: nn.Module, groups: Groups, inputs: dict[str, Any]) -> torch.Tensor:
        """(B,) the loss of each group."""


def _sums(values: torch.Tensor, owner: torch.Tensor, size: int) -> torch.Tensor:
    """(size,) sums of (L,) values by owner."""
    exact = values.new_zeros(size, dtype=torch.float64)  # sums in any order are the same in float32
    return exact.index_add(0, owner, values.double()).to(values.dtype)


def _shares(owner: torch.Tensor, tokens: torch.Tensor, counts: torch.Tensor, beyond: float) -> torch.Tensor:
    """(L,) 1 for as many tokens of an answer as the shortest of its group has, ``beyond`` for what comes after them.

    Args:
        owner: (L,) the answer of each token; those of an answer lie one after another, in order.
        tokens: (S,) of each answer.
        counts: (B,) answers of each group.
        beyond: see `GroupTrainer.tail_weight`.
    """
    group = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)  # (S,)
    shortest = tokens.new_zeros(len(counts)).scatter_reduce(0, group, tokens, "amin", include_self=False)
    place = torch.arange(len(owner), device=owner.device) - (tokens.cumsum(0) - tokens)[owner]
    return torch.where(place < shortest[group][owner], 1.0, beyond)


def won(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """How many chosen answers have the higher reward; a tie is half a one."""
    return (chosen > rejected).float().sum() + (chosen == rejected).float().sum() / 2


def without_dropout(model: nn.Module) -> None:
    """Switches dropout off for good: a policy that is compared with a reference must not differ from it by chance."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):  # some models pass their share to a function
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
