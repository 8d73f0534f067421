"""The trainer of KTO: answers that were found good or bad, weighed against how far the policy has moved at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunekit.core.errors import DataError
from tunekit.core.progress import Screen
from tunekit.plan.plan import Plan
from tunekit.rl.groups import GroupCollator, Groups, LossTrainer, without_dropout
from tunekit.rl.reference import add_reference
from tunekit.train.causal import causal_trainer
from tunekit.train.trainer import Share

KtoLoss = Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]
"""Of log-ratios (B,), whether good (B,), and the reference point: the loss (B,)."""


NEAR = 256
"""So many rows are looked at for another prompt: answers to one prompt stand side by side."""
UNEVEN = 4
"""So many times more answers of one kind are told; the paper weighs the kinds so that they count 1 to 4/3."""


class KtoTrainer(LossTrainer):
    """Trains on judged answers.

    Each row gets a second answer, that of another row: of such mismatched answers the distance between policy and
    reference is estimated, in each micro-batch, over all ranks (arXiv 2402.01306, section 4.1).
    """

    reported = frozenset({"reward_good", "reward_bad", "reward_margin", "kl"})
    loss: KtoLoss
    beta = 0.1
    reference = "initial"
    mismatched = True
    _alone = False
    _held_out: list[tuple[float, bool, float]] | None = None

    def ready(self, screen: Screen) -> None:
        """Gives every row its mismatched answer, and computes the reference of both."""
        super().ready(screen)
        if self.mismatched:
            longest = self.plan.recipe.data.max_length
            self.train_dataset = with_others(self.train_dataset, longest, "data.train")
            if self.eval_dataset is not None:
                self.eval_dataset = with_others(self.eval_dataset, longest, "data.eval")
        good = sum(score > 0.5 for score in self.train_dataset["score"])
        bad = len(self.train_dataset) - good
        if min(good, bad) * UNEVEN < max(good, bad):
            fix = (
                "weights (desirable_weight, undesirable_weight) can even that out"
                if min(good, bad)
                else "see tunekit sft"
            )
            screen.warn(f"{good:,} answers are good, {bad:,} are bad: {fix}")
        add_reference(self, self.reference, screen)

    def local_share(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> Share:
        """As of another trainer; the reference point is that of the batch."""
        self._alone = True
        try:
            return super().local_share(model, inputs)
        finally:
            self._alone = False

    def evaluation(self, rows: Any) -> dict[str, float]:
        """`TunekitTrainer.evaluation`, with one reference point for all rows: no batch's, and no rank's."""
        self._held_out = []
        try:
            found = super().evaluation(rows)
            answers = [answer for part in self.ranks.gather(self._held_out) for answer in part]
        finally:
            self._held_out = None
        ratios, good, moved = (torch.tensor(values) for values in zip(*answers, strict=True))
        z0 = moved.double().mean().clamp(min=0) if self.mismatched else 0.0
        return found | {"loss": float(self.loss(ratios.double(), good, z0).mean())}

    def losses(self, model: nn.Module, groups: Groups, inputs: dict[str, Any]) -> torch.Tensor:
        """(B,) the loss of each row."""
        real = inputs["tokens"] > 0
        reference, good = inputs["reference_logps"][real], inputs["score"][real] > 0.5
        first = groups.first
        ratios = groups.logps[first] - reference[:, 0]
        moved = groups.logps[first + 1].detach() - reference[:, 1] if self.mismatched else None
        z0 = 0.0 if moved is None else self._reference_point(moved)
        losses = self.loss(ratios, good, z0)
        if self._held_out is not None:
            far = torch.zeros_like(ratios) if moved is None else moved
            self._held_out += zip(ratios.tolist(), good.tolist(), far.tolist(), strict=True)
        rewards = self.beta * ratios.detach()
        sums = self.sums if model.training else self.held_out_sums
        sums.add("reward_good", rewards[good].sum(), good.sum())
        sums.add("reward_bad", rewards[~good].sum(), (~good).sum())
        if moved is not None:
            sums.add("kl", moved.sum(), len(moved))
        return losses

    def _reference_point(self, moved: torch.Tensor) -> torch.Tensor:
        """The mean over a micro-batch of all ranks, at least 0; a rank with fillers alone has none."""
        own = torch.stack([moved.sum().float(), torch.tensor(float(len(moved)), device=moved.device)])
        total = own if self._alone else self.accelerator.reduce(own, reduction="sum")
        point: torch.Tensor = (total[0] / total[1].clamp(min=1)).clamp(min=0)
        return point

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With the distance between the rewards of good and of bad answers."""
        for prefix in ("", "eval_"):
            if "loss" in logs and not prefix:
                logs |= self.sums.means(self.ranks)
            good, bad = logs.get(f"{prefix}reward_good"), logs.get(f"{prefix}reward_bad")
            if good is not None and bad is not None:
                logs[f"{prefix}reward_margin"] = good - bad
        super().log(logs, start_time)


def with_others(rows: Any, longest: int, where: str) -> Any:
    """The rows, each with the answer of another as its second branch.

    The other is the next row with another answer and, where one is near, another prompt: fixed for the whole run.

    Args:
        rows: prepared rows of one answer each.
        longest: tokens of a beginning and an answer, at most.
        where: the recipe's key of the rows.

    Raises:
        DataError: all rows have the same answer.
    """
    answers = [
        tuple(ids[len(ids) - sizes[0] :]) for ids, sizes in zip(rows["input_ids"], rows["branches"], strict=True)
    ]
    labels = [tuple(row[len(row) - sizes[0] :]) for row, sizes in zip(rows["labels"], rows["branches"], strict=True)]
    prompts = [
        tuple(ids[: len(ids) - sizes[0]]) for ids, sizes in zip(rows["input_ids"], rows["branches"], strict=True)
    ]
    size = len(answers)
    if len(set(answers)) < 2:
        what = "all answers are the same" if size > 1 else "there is one answer alone"
        raise DataError(
            f"{what}: KTO weighs an answer against the answers of other rows", where=where, fix=f"more rows in {where}"
        )
    others = [0] * size
    for index in range(2 * size - 1, -1, -1):  # twice around: the last rows look on at the first ones
        at, after = index % size, (index + 1) % size
        others[at] = after if answers[after] != answers[at] else others[after]
    others = [_elsewhere(at, other, prompts, answers) for at, other in enumerate(others)]

    def joined(row: dict[str, Any], index: int) -> dict[str, Any]:
        ids, sizes = row["input_ids"], row["branches"]
        beginning = len(ids) - sizes[0]
        at = others[index]
        room = longest - beginning
        added = list(answers[at][:room])
        marks = list(labels[at][:room])
        positions = list(range(len(ids))) + list(range(beginning, beginning + len(added)))
        return {
            "input_ids": ids + added,
            "labels": row["labels"] + marks,
            "branches": [sizes[0], len(added)],
            "position_ids": positions,
            "length": len(ids) + len(added),
        }

    return rows.map(joined, with_indices=True, keep_in_memory=True, load_from_cache_file=False)


def _elsewhere(at: int, other: int, prompts: list[tuple[int, ...]], answers: list[tuple[int, ...]]) -> int:
    """The first row from ``other`` on whose prompt is another one too; ``other`` where none is near."""
    for step in range(NEAR):
        found = (other + step) % len(prompts)
        if prompts[found] != prompts[at] and answers[found] != answers[at]:
            return found
    return other


def kto_trainer(
    plan: Plan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Any,
    evaluation: Any,
    staging: Path,
    *,
    loss: KtoLoss,
    beta: float,
    reference: str,
    mismatched: bool,
) -> KtoTrainer:
    """Builds the trainer; arguments as `causal_trainer`'s.

    Args:
        loss: of each judged answer, (B,).
        beta: scale of the rewards that are shown.
        reference: see `reference.add_reference`.
        mismatched: whether the loss needs the distance between policy and reference.
    """
    without_dropout(model)
    trainer = causal_trainer(
        plan, model, tokenizer, train, evaluation, staging, kind=KtoTrainer, collator=GroupCollator
    )
    assert isinstance(trainer, KtoTrainer)
    trainer.loss, trainer.beta, trainer.reference, trainer.mismatched = loss, beta, reference, mismatched
    return trainer
