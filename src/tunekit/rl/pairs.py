"""The trainer of the methods that learn from pairs: what a pair costs is the method's own function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunekit.core.progress import Screen
from tunekit.kernels.label_loss import LabelHead
from tunekit.kernels.token_logps import Pieces, arithmetic
from tunekit.plan.plan import Plan
from tunekit.rl.groups import GroupCollator, Groups, LossTrainer, without_dropout, won
from tunekit.rl.pair_losses import PairLogps
from tunekit.rl.reference import add_reference
from tunekit.train.causal import causal_trainer

PairLoss = Callable[[PairLogps], torch.Tensor]


class PairTrainer(LossTrainer):
    """Trains on pairs of a chosen and a rejected answer to the same prompt."""

    reported = frozenset({
        "reward_accuracy", "reward_margin", "reward_chosen", "reward_rejected", "logps_chosen", "logps_rejected",
    })  # fmt: skip
    loss: PairLoss
    rewards: Callable[[PairLogps], tuple[torch.Tensor, torch.Tensor]]
    reference: str | None = None
    weighted = False
    """Whether a pair counts the more, the likelier the policy is to give its answers (WPO, arXiv 2406.11827)."""
    chosen_tokens: float | None = None
    """Trained tokens of a better answer, on average over a step, or over the held-out rows while they are evaluated."""
    held_out_tokens: float | None = None

    def ready(self, screen: Screen) -> None:
        """Computes the reference, if the method has one."""
        super().ready(screen)
        if self.reference is not None:
            add_reference(self, self.reference, screen)

    def losses(self, model: nn.Module, groups: Groups, inputs: dict[str, Any]) -> torch.Tensor:
        """(B,) the loss of each pair."""
        pairs = self._pairs(groups, inputs)
        losses = self.loss(pairs)
        if self.weighted:
            likely = likeliness(self.head, groups)
            losses = losses * likely[groups.first] * likely[groups.first + 1]
        with torch.no_grad():
            chosen, rejected = self.rewards(pairs)
        self.noted(
            model,
            len(losses),
            reward_accuracy=won(chosen, rejected),
            reward_margin=(chosen - rejected).sum(),
            reward_chosen=chosen.sum(),
            reward_rejected=rejected.sum(),
            logps_chosen=pairs.chosen.sum(),
            logps_rejected=pairs.rejected.sum(),
        )
        return losses

    def evaluation(self, rows: Any) -> dict[str, float]:
        """`TunekitTrainer.evaluation`; likelihoods of better answers are means over the tokens of all rows."""
        if self.held_out_tokens is None:
            better = sum(_of_first(row, sizes) for row, sizes in zip(rows["labels"], rows["branches"], strict=True))
            self.held_out_tokens = better / len(rows)
        self.chosen_tokens = self.held_out_tokens
        return super().evaluation(rows)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Pairs of a step over all ranks; how long their better answers are is noted."""
        own = [0.0, 0.0]
        for batch in batch_samples:
            labels, sizes = batch["labels"], batch["branches"]  # (B, T), (B, R)
            begins = batch["tokens"] - sizes.sum(1)
            places = torch.arange(labels.shape[1])
            first = (places >= begins[:, None]) & (places < (begins + sizes[:, 0])[:, None])
            own[0] += int((batch["tokens"] > 0).sum())
            own[1] += int((first & (labels >= 0)).sum())
        pairs, better = self.ranks.sum(own)
        self.chosen_tokens = better / max(1.0, pairs)
        return torch.tensor(int(pairs), device=device)

    def _pairs(self, groups: Groups, inputs: dict[str, Any]) -> PairLogps:
        first, real = groups.first, inputs["tokens"] > 0
        known = {}
        if self.reference is not None:
            values = inputs["reference_logps"][real]
            known = {"reference_chosen": values[:, 0], "reference_rejected": values[:, 1]}
        margins, mean = inputs["score"][real], self.chosen_tokens
        return PairLogps(
            chosen=groups.logps[first],
            rejected=groups.logps[first + 1],
            chosen_tokens=groups.tokens[first],
            rejected_tokens=groups.tokens[first + 1],
            margin=margins.nan_to_num(0.0),
            mean_chosen_tokens=None if mean is None else groups.logps.new_tensor(mean),
            whole=groups.whole[first],
            **known,
        )


@torch.no_grad()
def likeliness(head: LabelHead, groups: Groups) -> torch.Tensor:
    """(S,) how likely a policy is to give each answer itself (WPO, arXiv 2406.11827, eq. 2).

    The geometric mean over its tokens of p / (sum of the squares of all tokens' p): 1 of an answer whose tokens are as
    likely as those that the policy draws.

    Args:
        head: of the model that gave ``groups``.
        groups: answers at temperature 1.
    """
    each = groups.each - _log_of_squares(head, groups)
    total = each.new_zeros(len(groups.tokens)).index_add(0, groups.owner, each)
    return (total / groups.tokens.clamp(min=1)).exp()


def _log_of_squares(head: LabelHead, groups: Groups) -> torch.Tensor:
    """(L,) logarithm of the sum of the squares of all tokens' probabilities, where each token is predicted."""
    if head.tail is None:
        logits = groups.outputs.logits[0].float()  # (L, V)
        return torch.logsumexp(2 * logits, -1) - 2 * torch.logsumexp(logits, -1)
    hidden, linear = groups.hidden, head.head
    found = torch.empty_like(groups.each)
    dtype = arithmetic(hidden, linear.weight)  # type: ignore[arg-type]
    with torch.autocast(hidden.device.type, enabled=False):
        pieces = Pieces.of(hidden, linear.weight, linear.bias, head.tail, dtype)  # type: ignore[arg-type]
        for rows in pieces.rows():
            logits, _ = pieces.logits(rows)
            total = logits.logsumexp(-1)
            found[rows] = logits.mul_(2).logsumexp(-1) - 2 * total
    return found


def _of_first(labels: Sequence[int], sizes: Sequence[int]) -> int:
    """Trained tokens of a group's first answer."""
    before = len(labels) - sum(sizes)
    return sum(label >= 0 for label in labels[before : before + sizes[0]])


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
    tail_weight: float | None = None,
    weighted: bool = False,
) -> PairTrainer:
    """Builds the trainer of a method on pairs; arguments as `causal_trainer`'s.

    Args:
        loss: the loss of each pair, (B,).
        rewards: what the method takes the chosen and the rejected answers to be worth, (B,) each.
        reference: see `reference.add_reference`; None for a method without one.
        tail_weight: see `GroupTrainer`.
        weighted: see `PairTrainer`.
    """
    without_dropout(model)
    trainer = causal_trainer(
        plan, model, tokenizer, train, evaluation, staging, kind=PairTrainer, collator=GroupCollator
    )
    assert isinstance(trainer, PairTrainer)
    trainer.loss, trainer.rewards, trainer.reference = loss, rewards, reference
    trainer.tail_weight, trainer.weighted = tail_weight, weighted
    return trainer
