"""The trainer of the methods that learn from rewards: draws answers, has them judged, and moves the policy.

One trainer for PPO, GRPO and RLOO: they differ in what an answer's advantage is, and in how its tokens are weighed,
which the method's own file says in a `Rule`. Answers do not depend on the batch, on the number of ranks, or on where a
run was stopped: each is drawn with a generator of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunekit.core.progress import Screen
from tunekit.evaluate.contract import EvalItem, TaskResult
from tunekit.plan.plan import Plan
from tunekit.rl import drawing, held_out, values
from tunekit.rl.advantages import AdaptiveKL, kl_estimate
from tunekit.rl.blocks import RolloutBlock
from tunekit.rl.colocated import Colocated
from tunekit.rl.groups import GroupCollator, GroupTrainer, without_dropout
from tunekit.rl.policy_losses import PolicyOptions, StepTotals, entropy_bonus, policy_loss, token_weights, value_loss
from tunekit.rl.rewarding import Rewarder
from tunekit.rl.rollouts import Rollout, group_of, load_rollouts, means, save_rollouts
from tunekit.rl.stopping import Cut, left_for_later, unless_asked
from tunekit.rl.tables import Table, numbers_of
from tunekit.rl.watch import RewardWatch
from tunekit.rl.windows import Windows
from tunekit.runs.layout import RunFolder
from tunekit.runs.metrics import MetricsWriter
from tunekit.train.causal import causal_trainer
from tunekit.train.inputs import Inputs
from tunekit.train.trainer import EvaluationCut, Share


@dataclass(frozen=True)
class Rule:
    """What makes a method of these.

    Args:
        advantages: fills in the advantages of a window's answers.
        options: of the policy's loss.
        kl_in_loss: whether the KL is a part of the loss; else ``advantages`` takes it from the rewards.
        value_coef: weight of the values' loss; None without values.
        value_clip: see `policy_losses.value_loss`.
        controller: moves the price of the KL; None where it is fixed.
    """

    advantages: drawing.Advantages
    options: PolicyOptions
    kl_in_loss: bool
    value_coef: float | None = None
    value_clip: float | None = None
    controller: AdaptiveKL | None = None


class PolicyCollator(GroupCollator):
    """As `GroupCollator`, with the prompt's ``index`` and the numbers of the answers' tokens."""

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """The batch."""
        return super().__call__(examples) | numbers_of(examples)


class PolicyTrainer(GroupTrainer):
    """Draws, judges and learns; the examples of a batch are prompts with the answers that were drawn to them."""

    rule: Rule
    block: RolloutBlock
    tokenizer: PreTrainedTokenizerBase
    rewarder: Rewarder
    stop_ids: tuple[int, ...]
    journal: MetricsWriter | None = None

    def ready(self, screen: Screen) -> None:
        """Remembers the policy as it begins, and numbers the prompts."""
        super().ready(screen)
        drawing.check_prompts(self, screen)
        model = self.accelerator.unwrap_model(self.model)
        self.initial_values = drawing.initial_values(model, self.block.reference) if self.block.beta else {}
        self.train_dataset = self.train_dataset.add_column("index", list(range(len(self.train_dataset))))
        self.windows = Windows(self.args, self.accelerator, self.train_dataset["length"][:], self.window, self.passes)
        self.watch, self.rollouts = RewardWatch(), dict[int, Rollout]()
        self.at: tuple[int, int] | None = None
        self.told: dict[str, float] = {}
        self.totals = StepTotals(1.0, 1.0)
        self.moved = 0.0
        self.reported = held_out.REPORTED | {f"reward/{name}" for name in self.rewarder.named}

    @cached_property
    def colocated(self) -> Colocated:
        """vLLM beside the policy, begun when the first answers are drawn."""
        return Colocated.beside(self)

    @property
    def beta(self) -> float:
        """The price of the KL now."""
        return self.rule.controller.beta if self.rule.controller else self.block.beta

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The prompts of a step with their answers; at the beginning of a window these are drawn."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        step = self.state.global_step
        window = self.windows.at(step)
        if self.at != window.number:
            self._draw(window.number, window.rows)
        elif self.block.target_kl is not None and self.ranks.sum([self.moved])[0] > self.block.target_kl:
            self.skipped |= set(range(step + 1, window.ends + 1))  # as a rollback leaves steps out
        answered = [
            self.data_collator([self._answered(index) for index in batch["index"].tolist()]) for batch in samples
        ]
        sizes = [size for batch in answered for size in batch["branches"].flatten().tolist() if size]
        sequences, tokens = self.ranks.sum([len(sizes), sum(sizes)])
        drawn = sum(len(answer.ids) for rollout in self.rollouts.values() for answer in rollout.answers)
        self.totals = StepTotals(
            sequences, tokens, drawn * self.passes / window.steps, max_tokens=self.block.max_new_tokens
        )
        self.moved = 0.0
        for name, value in self.told.items():
            self.sums.add(name, value, 1)
        return answered, torch.tensor(1.0, device=device)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's; a window that is cut short by a wish to stop is left for the run that goes on to draw."""
        with left_for_later(self):
            super()._run_epoch(*args, **kwargs)

    def _answered(self, index: int) -> dict[str, Any]:
        """The prompt with its answers as an example; a filler stays one."""
        if index < 0:
            empty: dict[str, Any] = {"input_ids": [0], "labels": [-100], "position_ids": None, "empty": True}
            known = next(iter(self.rollouts.values())).answers[0].numbers  # a batch of fillers alone has these too
            return empty | {"branches": [], "numbers": {name: [] for name in known}}
        return group_of(self.rollouts[index]) | {"index": index}

    def _draw(self, number: tuple[int, int], rows: Sequence[int]) -> None:
        """A new window: answers, rewards, advantages."""
        prompts = {index: self.train_dataset[index] for index in rows}
        self.rollouts = drawing.roll_out(
            self, prompts, (self.args.seed * 1_000_003 + number[0]) * 1_000_003 + number[1]
        )
        found = list(self.rollouts.values())
        if self.at is None:
            values.begin_at(self.accelerator.unwrap_model(self.model), means(found)["reward"], found)
        self.rule.advantages(found, self.beta)
        self.at, self.told = number, means(found) | drawing.facts_of(found, self.beta)
        if self.rule.controller is not None:
            answers = sum(len(rollout.answers) for rollout in found)
            self.rule.controller.update(self.told["kl"], answers)
        warning = self.watch.see(self.told)
        step = self.state.global_step
        if warning and self.ranks.rank == 0:
            self.warn(f"step {step + 1}: {warning}")
        if self.ranks.rank == 0:
            if self.journal is None:  # what a stopped run wrote of later steps is drawn again
                self.journal = MetricsWriter(RunFolder(self.run_folder).rollouts, keep_through=step)
            held_out.write_rollouts(self.journal, step + 1, self.train_dataset, self.rollouts)

    def share_of(self, model: nn.Module, inputs: dict[str, Any]) -> Share:
        """This batch's part of the step's loss; its items are its share of the step's tokens."""
        groups = self.groups_of(model, inputs, entropy=True)
        assert groups.entropy is not None
        table = Table.of(groups.owner, len(groups.logps))
        sizes, mask, rule = inputs["branches"].sum(1), table.mask, self.rule
        numbers = {name: table.of_groups(inputs[name], sizes) for name in ("old", "advantages")}
        logps, entropy = table.of_tokens(groups.each), table.of_tokens(groups.entropy)
        found = policy_loss(logps, numbers["old"], numbers["advantages"], mask, rule.options)
        losses = found.tokens
        if rule.kl_in_loss and self.beta:
            reference = table.of_groups(inputs["reference"], sizes)
            losses = losses + self.beta * kl_estimate(self.block.kl, logps, reference).where(mask, 0.0)
        if self.block.entropy_coef:
            losses = losses + entropy_bonus(logps, numbers["old"], entropy, mask, self.block.entropy_coef)
        weights = token_weights(rule.options.kind, mask.sum(1), self.totals).to(losses.dtype)[:, None]
        total = (losses * weights).sum()
        tokens = mask.sum()
        if rule.value_coef is not None:
            old, returns = (table.of_groups(inputs[name], sizes) for name in ("values", "returns"))
            found_values = self.values_of(model, groups.hidden)
            assert found_values is not None, "a model without a head of values"
            now = table.of_tokens(found_values)
            errors, clipped = value_loss(now, old, returns, mask, rule.value_clip)
            total = total + rule.value_coef * (errors * weights).sum()
            self.sums.add("value_loss", errors.detach().sum(), tokens)
            self.sums.add("value_clip_share", clipped.detach() * tokens, tokens)
        with torch.no_grad():
            moved = kl_estimate("k3", numbers["old"], logps).where(mask, 0.0).sum()
            self.sums.add("approx_kl", moved, tokens)
            self.sums.add("clip_share", found.clipped.where(mask, False).sum(), tokens)
            self.sums.add("entropy", entropy.sum(), tokens)
            if self.block.target_kl is not None:
                self.moved += float(moved) / max(1.0, self.totals.tokens)
        return Share(total + groups.hidden.sum() * 0, float(tokens) / max(1.0, self.totals.tokens), groups.outputs)

    def values_of(self, model: nn.Module, hidden: torch.Tensor) -> torch.Tensor | None:
        """(L,) the value before each token, of the states (L, E) that it is predicted from; None without values."""
        return values.values_of(self.accelerator.unwrap_model(model), hidden)

    def train_from(self, checkpoint: Path | None) -> Any:
        """As of another trainer; the file of shown answers is closed at the end."""
        try:
            return super().train_from(checkpoint)
        finally:
            if self.journal is not None:
                self.journal.close()

    def evaluation(self, rows: Any) -> dict[str, float]:
        """The rewards of the held-out prompts, answered greedily; the loss is minus their mean."""

        def nothing() -> None:
            self.held_out_sums.add("reward", 0.0, 1)
            self.held_out_sums.means(self.ranks)

        try:
            return unless_asked(self, lambda: held_out.evaluation(self, rows), nothing)
        except Cut:
            raise EvaluationCut from None

    def measure(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        items: Sequence[EvalItem],
        screen: Screen,
        stop_ids: Sequence[int],
    ) -> list[TaskResult]:
        """The reward on the held-out prompts, and the metrics of generation where they are asked for."""
        found = held_out.measure(self, model, items, screen)
        if self.plan.recipe.eval.generate:
            found += super().measure(model, tokenizer, items, screen, stop_ids)
        return found

    def trial(self, example: dict[str, Any]) -> dict[str, Any]:
        """A prompt with answers of the greatest length, to try whether they fit into memory."""
        return held_out.trial(example, self.block, drawing.engine_of(self, self.model).positions)

    def method_state(self) -> dict[str, Any]:
        """Where the run stands among its windows, and the price of the KL."""
        own = {"at": self.at, "told": self.told, "moved": self.moved, "watch": self.watch.state()}
        controller = self.rule.controller
        return super().method_state() | own | {"price": controller.state() if controller else None}

    def restore_method_state(self, state: dict[str, Any]) -> None:
        """Takes back what `method_state` gave."""
        super().restore_method_state(state)
        self.at = tuple(state["at"]) if state["at"] else None
        self.told, self.moved = state["told"], state["moved"]
        self.watch.restore(state["watch"])
        if self.rule.controller is not None and state["price"] is not None:  # the target may be new
            self.rule.controller.restore(state["price"])

    def write_method(self, folder: Path) -> None:
        """The answers that are being learnt from, and the head of the values."""
        save_rollouts(folder, self.rollouts)
        values.save(self.accelerator.unwrap_model(self.model), folder)

    def read_method(self, folder: Path) -> None:
        """Takes back what `write_method` wrote."""
        self.rollouts = load_rollouts(folder)
        values.load(self.accelerator.unwrap_model(self.model), folder)

    def _watch(self, step: int, loss: float) -> None:
        """A policy's loss means nothing by itself: rewards are watched in its place."""


def policy_trainer(
    plan: Plan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Any,
    evaluation: Any,
    staging: Path,
    *,
    rule: Rule,
) -> PolicyTrainer:
    """Builds the trainer; arguments as `causal_trainer`'s, and the method's rule."""
    from tunekit.model.save import stop_ids

    without_dropout(model)
    if rule.value_coef is not None:
        values.add_head(model)
    trainer = causal_trainer(
        plan, model, tokenizer, train, evaluation, staging, kind=PolicyTrainer, collator=PolicyCollator
    )
    assert isinstance(trainer, PolicyTrainer)
    block = plan.recipe.options
    folder = Path(plan.recipe_folder)
    trainer.rule, trainer.block, trainer.tokenizer = rule, block, tokenizer
    trainer.rewarder = drawing.BoundedRewarder(block.reward, folder)
    trainer.stop_ids = tuple(stop_ids(tokenizer, model, Inputs(plan.recipe, folder).turn_end))
    trainer.window, trainer.passes, trainer.temperature = block.rollout_steps, block.passes, block.temperature
    return trainer
