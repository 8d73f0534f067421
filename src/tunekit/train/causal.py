"""A trainer for next-token prediction on transformers' Trainer, shared by the methods that train a causal model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from tunekit.core.registry import METHODS
from tunekit.data.collate import Collator
from tunekit.evaluate.mode import plain_model
from tunekit.kernels.attention import NAME, mask_of
from tunekit.kernels.label_loss import LabelHead, LabelLoss, find_tail
from tunekit.kernels.segments import flatten, label_positions, rounded
from tunekit.plan.plan import Plan
from tunekit.train.arguments import compiles, training_arguments
from tunekit.train.flops import step_flops
from tunekit.train.isolation import check_causal, check_isolated, run_flat
from tunekit.train.sums import Sums
from tunekit.train.trainer import Share, TunekitTrainer

_FOR_MODEL = ("input_ids", "position_ids", "attention_mask", "segments")
"""Columns of a batch that the model gets."""


class CausalTrainer(TunekitTrainer, Trainer):
    """Cross-entropy of the next token, a mean over the trained tokens of the global batch.

    A micro-batch runs as one flat row of documents, so that nothing is computed on padding, and the loss is computed at
    labelled positions only. ``padded_because`` says why a model runs padded instead; it is empty when it does not.
    """

    def look_at_model(self, padded_because: str) -> None:
        """Finds the head and what follows it; called once, when the model lies on its device."""
        self.padded_because = padded_because
        plain = plain_model(self.model)
        head = plain.get_output_embeddings()
        self.head = LabelHead(head, find_tail(plain, head), compiled=self.args.torch_compile)
        self.with_segments = not padded_because and plain.config._attn_implementation == NAME
        self.few_shapes = self.accelerator.device.type == "cpu" and self.args.bf16
        self.model_accepts_loss_kwargs = True  # Trainer counts the labels of the whole step, and divides no further
        self.sums, self.held_out_sums = Sums(), Sums()

    def method_state(self) -> dict[str, Any]:
        """The counts since the last logged line, so that the next one is the uninterrupted run's."""
        return {"sums": self.sums.state()}

    def restore_method_state(self, state: dict[str, Any]) -> None:
        """Takes back what `method_state` gave."""
        self.sums.restore(state["sums"])

    def positions_of(self, inputs: dict[str, Any]) -> int:
        """Positions that the model computes for a batch of the collator: real tokens, and padding where there is."""
        if self.padded_because:
            return int(inputs["input_ids"].numel())
        tokens = int(inputs["tokens"].clamp(min=1).sum())
        return rounded(tokens) if self.few_shapes else tokens

    def local_share(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> Share:
        """What a batch adds to a step, by the same forward pass as in training, without a word to the other ranks.

        Args:
            model: without the wrapper of distributed training.
            inputs: a batch of the collator, on any device.
        """
        counted, self.sums = self.sums, Sums()  # it is no step of the training
        try:
            with self.compute_loss_context_manager():
                return self.share_of(model, self._prepare_inputs(inputs))
        finally:
            self.sums = counted

    def share_of(self, model: nn.Module, inputs: dict[str, Any]) -> Share:
        """The cross-entropy of a batch that was laid out; its items are the trained tokens."""
        found = self._label_loss(model, inputs)
        labels = len(inputs["targets"])
        if model.training:
            self.sums.add("mean_token_accuracy", found.correct, labels)
        return Share(found.total, labels, found.outputs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a micro-batch as its share of the step's mean; the router loss of experts is added."""
        share = self.share_of(model, self._prepare_inputs(inputs))
        count = share.items if num_items_in_batch is None else num_items_in_batch
        world = self.accelerator.num_processes if num_items_in_batch is not None else 1  # DDP averages over the ranks
        loss = share.total * world / torch.as_tensor(count).clamp(min=1)
        if model.training and (further := self.further_loss()) is not None:
            loss = loss + further * share.items * world / torch.as_tensor(count).clamp(min=1)
        config = plain_model(self.model).config.get_text_config()
        if getattr(config, "output_router_logits", False):
            steps = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + config.router_aux_loss_coef * share.outputs.aux_loss / steps
        return (loss, share.outputs) if return_outputs else loss

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager[Any]:
        """The run's arithmetic, also for a model that is not wrapped for training (yet): a reference, or values.

        Trainer leaves it to the wrapper alone.
        """
        arithmetic: AbstractContextManager[Any] = self.accelerator.autocast()
        return arithmetic

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's, with the means of what was counted since the last line."""
        if "loss" in logs:
            logs |= self.sums.means(self.ranks)
        super().log(logs, start_time)

    def lay_out(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch of the collator as the model reads it, with ``keep`` and ``targets``; flat where the model can."""
        if not self.padded_because:
            return flatten(inputs, few_shapes=self.few_shapes)
        laid_out = {name: value for name, value in inputs.items() if name in _FOR_MODEL}
        return laid_out | label_positions(inputs["labels"])

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Lays the batch out while it is on the CPU: nothing there has to wait for the device."""
        if "keep" in inputs:
            return inputs
        laid_out = self.lay_out(inputs)
        segments = laid_out.pop("segments", None)
        moved: dict[str, Any] = super()._prepare_inputs(laid_out)
        if self.with_segments and segments is not None:
            segments = segments.to(self.accelerator.device)
            moved |= {"segments": segments, "attention_mask": mask_of(segments)}
        return moved

    @staticmethod
    def for_model(inputs: dict[str, Any]) -> dict[str, Any]:
        """The part of a batch that the model takes."""
        return {name: value for name, value in inputs.items() if name in _FOR_MODEL}

    def _label_loss(self, model: nn.Module, inputs: dict[str, Any]) -> LabelLoss:
        smoothing = self.args.label_smoothing_factor
        return self.head.loss(model, self.for_model(inputs), inputs["keep"], inputs["targets"], smoothing)


def causal_trainer(
    plan: Plan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Any,
    evaluation: Any,
    staging: Path,
    *,
    kind: type[CausalTrainer] = CausalTrainer,
    collator: type[Collator] = Collator,
) -> CausalTrainer:
    """Builds the trainer of a causal language model.

    Args:
        plan: the resolved plan.
        model: with its adapter, if any.
        tokenizer: its pad token fills batches up.
        train: prepared examples (a datasets.Dataset or IterableDataset).
        evaluation: prepared held-out examples, or None.
        staging: where checkpoints are written before they are put in place.
        kind: the trainer's class.
        collator: the class that makes batches of examples.

    Raises:
        UserError: packed examples must not see each other, but in this model they do.
    """
    stopping = plan.recipe.train.early_stopping
    callbacks = [EarlyStoppingCallback(stopping.patience, stopping.min_delta)] if stopping else []
    compiled = compiles(plan, step_flops(model).per_token * _tokens(plan, train))
    collate = collator(tokenizer.pad_token_id, with_mask=counts_by_mask(model))
    trainer = kind(
        model=model,
        args=TrainingArguments(
            **training_arguments(plan, staging, evaluates=evaluation is not None, compiled=compiled)
        ),
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        data_collator=collate,
        callbacks=callbacks,
    )
    look_at(trainer, plan)
    return trainer


def look_at(trainer: CausalTrainer, plan: Plan) -> None:
    """Finds out how the trainer's model can run, and whether what it computes is fit to be trained on.

    Raises:
        UserError: packed examples must not see each other, but in this model they do.
    """
    model: Any = trainer.model
    arithmetic = trainer.accelerator.autocast
    check_causal(model, arithmetic())
    trainer.look_at_model(run_flat(model, plan, arithmetic(), compiled=trainer.args.torch_compile))
    if trainer.padded_because and plan.recipe.data.packing and METHODS.load(plan.method).ISOLATED:
        check_isolated(model, trainer.data_collator, min(plan.micro_batch_size, 2), arithmetic())


def _tokens(plan: Plan, train: Any) -> float:
    """Tokens of the run, at most."""
    wanted = plan.recipe.train
    if wanted.max_steps is not None:
        return wanted.max_steps * wanted.batch_size * plan.recipe.data.max_length
    return (wanted.epochs or 1.0) * len(train) * plan.recipe.data.max_length


def counts_by_mask(model: PreTrainedModel) -> bool:
    """Mixture-of-experts models weigh their router loss by the attention mask, so padding must be marked for them."""
    return "output_router_logits" in model.config.get_text_config().to_dict()
