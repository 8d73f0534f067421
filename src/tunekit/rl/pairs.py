"""The trainer of the methods that learn from pairs: what a pair costs is the method's own function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunekit.core.progress import Screen
from tunekit.plan.plan import Plan
from tunekit.rl.groups import GroupCollator, Groups, GroupTrainer, without_dropout
from tunekit.rl.pair_losses import PairLogps
from tunekit.rl.reference import add_reference
from tunekit.train.causal import causal_trainer

PairLoss = Callable[[PairLogps], torch.Tensor]


class PairTrainer(GroupTrainer):
    """Trains on pairs of a chosen and a rejected answer to the same prompt."""

    reported = frozenset({
        "reward_accuracy", "reward_margin", "reward_chosen", "reward_rejected", "logps_chosen", "logps_rejected",
    })  # fmt: skip
    loss: PairLoss
    rewards: Callable[[PairLogps], tuple[torch.Tensor, torch.Tensor]]
    reference: str | None = None

    def ready(self, screen: Screen) -> None:
        """Computes the reference, if the method has one."""
        super().ready(screen)
        if self.reference is not None:
            add_reference(self, self.reference, screen)

    def losses(self, model: nn.Module, groups: Groups, inputs: dict[str, Any]) -> torch.Tensor:
        """(B,) the loss of each pair."""
        pairs = self._pairs(groups, inputs)
        losses = self.loss(pairs)
        with torch.no_grad():
            chosen, rejected = self.rewards(pairs)
        self.noted(
            model,
            len(losses),
            reward_accuracy=(chosen > rejected).float().sum(),
            reward_margin=(chosen - rejected).sum(),
            reward_chosen=chosen.sum(),
            reward_rejected=rejected.sum(),
            logps_chosen=pairs.chosen.sum(),
            logps_rejected=pairs.rejected.sum(),
        )
        return losses

    def _pairs(self, groups: Groups, inputs: dict[str, Any]) -> PairLogps:
        first, real = groups.first, inputs["tokens"] > 0
        known = {}
        if self.reference is not None:
            values = inputs["reference_logps"][real]
            known = {"reference_chosen": values[:, 0], "reference_rejected": values[:, 1]}
        margins = inputs["score"][real]
        return PairLogps(
            chosen=groups.logps[first],
            rejected=groups.logps[first + 1],
            chosen_tokens=groups.tokens[first],
            rejected_tokens=groups.tokens[first + 1],
            margin=margins.nan_to_num(0.0),
            **known,
        )


def pair_trainer(
    plan: Plan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Any,
    evaluation: Any,
    staging: Path,
    *,
    loss: PairLoss,
    rewards: Callable[[PairLogps], tuple[torch.Tensor, torch.Tensor]],
    reference: str | None = None,
) -> PairTrainer:
    """Builds the trainer of a method on pairs; arguments as `causal_trainer`'s.

    Args:
        loss: the loss of each pair, (B,).
        rewards: what the method takes the chosen and the rejected answers to be worth, (B,) each.
        reference: see `reference.add_reference`; None for a method without one.
    """
    without_dropout(model)
    trainer = causal_trainer(
        plan, model, tokenizer, train, evaluation, staging, kind=PairTrainer, collator=GroupCollator
    )
    assert isinstance(trainer, PairTrainer)
    trainer.loss, trainer.rewards, trainer.reference = loss, rewards, reference
    return trainer
