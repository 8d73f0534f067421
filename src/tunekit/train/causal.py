"""A trainer for next-token prediction on transformers' Trainer, shared by the methods that train a causal model."""

from __future__ import annotations

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
from tunekit.train.trainer import TunekitTrainer

_LABELS = ("labels", "tokens", "rows")
"""Columns of a batch that the model does not get."""


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
        self._correct: Any = 0
        self._labelled = 0

    def method_state(self) -> dict[str, Any]:
        """The counts since the last logged line, so that the next one is the uninterrupted run's."""
        return {"correct": int(self._correct), "labelled": self._labelled}

    def restore_method_state(self, values: dict[str, Any]) -> None:
        """Takes back what `method_state` gave."""
        self._correct, self._labelled = values["correct"], values["labelled"]

    def positions_of(self, inputs: dict[str, Any]) -> int:
        """Positions that the model computes for a batch of the collator: real tokens, and padding where there is."""
        if self.padded_because:
            return int(inputs["input_ids"].numel())
        tokens = int(inputs["tokens"].clamp(min=1).sum())
        return rounded(tokens) if self.few_shapes else tokens

    def local_loss(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The summed loss of a batch by the same forward pass as in training, without a word to the other ranks.

        Args:
            model: without the wrapper of distributed training.
            inputs: a batch of the collator, on any device.
        """
        with self.compute_loss_context_manager():
            return self._label_loss(model, self._prepare_inputs(inputs)).total

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a micro-batch as its share of the step's mean; the router loss of experts is added."""
        inputs = self._prepare_inputs(inputs)
        found = self._label_loss(model, inputs)
        labels = len(inputs["targets"])
        if model.training:
            self._correct, self._labelled = self._correct + found.correct, self._labelled + labels
        count = labels if num_items_in_batch is None else num_items_in_batch
        world = self.accelerator.num_processes if num_items_in_batch is not None else 1  # DDP averages over the ranks
        loss = found.total * world / torch.as_tensor(count).clamp(min=1)
        if model.training and (further := self.further_loss()) is not None:
            loss = loss + further * labels * world / torch.as_tensor(count).clamp(min=1)
        config = plain_model(self.model).config.get_text_config()
        if getattr(config, "output_router_logits", False):
            steps = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + config.router_aux_loss_coef * found.outputs.aux_loss / steps
        return (loss, found.outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's, with the share of trained tokens that were the likeliest."""
        if "loss" in logs:
            correct, labelled = self.ranks.sum([float(self._correct), float(self._labelled)])
            logs["mean_token_accuracy"] = correct / max(labelled, 1.0)
            self._correct, self._labelled = 0, 0
        super().log(logs, start_time)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Lays the batch out while it is on the CPU: nothing there has to wait for the device."""
        if "keep" in inputs:
            return inputs
        if self.padded_because:
            laid_out = {name: value for name, value in inputs.items() if name not in _LABELS}
            laid_out |= label_positions(inputs["labels"])
        else:
            laid_out = flatten(inputs, few_shapes=self.few_shapes)
        segments = laid_out.pop("segments", None)
        moved: dict[str, Any] = super()._prepare_inputs(laid_out)
        if self.with_segments and segments is not None:
            segments = segments.to(self.accelerator.device)
            moved |= {"segments": segments, "attention_mask": mask_of(segments)}
        return moved

    def _label_loss(self, model: nn.Module, inputs: dict[str, Any]) -> LabelLoss:
        given = {name: value for name, value in inputs.items() if name not in ("keep", "targets")}
        smoothing = self.args.label_smoothing_factor
        return self.head.loss(model, given, inputs["keep"], inputs["targets"], smoothing)


def causal_trainer(
    plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Any, evaluation: Any, staging: Path
) -> CausalTrainer:
    """Builds the trainer of a causal language model.

    Args:
        plan: the resolved plan.
        model: with its adapter, if any.
        tokenizer: its pad token fills batches up.
        train: prepared examples (a datasets.Dataset or IterableDataset).
        evaluation: prepared held-out examples, or None.
        staging: where checkpoints are written before they are put in place.

    Raises:
        UserError: packed examples must not see each other, but in this model they do.
    """
    stopping = plan.recipe.train.early_stopping
    callbacks = [EarlyStoppingCallback(stopping.patience, stopping.min_delta)] if stopping else []
    compiled = compiles(plan, step_flops(model).per_token * _tokens(plan, train))
    collator = Collator(tokenizer.pad_token_id, with_mask=_counts_by_mask(model))
    trainer = CausalTrainer(
        model=model,
        args=TrainingArguments(
            **training_arguments(plan, staging, evaluates=evaluation is not None, compiled=compiled)
        ),
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        data_collator=collator,
        callbacks=callbacks,
    )
    arithmetic = trainer.accelerator.autocast
    check_causal(model, arithmetic())
    trainer.look_at_model(run_flat(model, plan, arithmetic(), compiled=trainer.args.torch_compile))
    if trainer.padded_because and plan.recipe.data.packing and METHODS.load(plan.method).ISOLATED:
        check_isolated(model, collator, min(plan.micro_batch_size, 2), arithmetic())
    return trainer


def _tokens(plan: Plan, train: Any) -> float:
    """Tokens of the run, at most."""
    wanted = plan.recipe.train
    if wanted.max_steps is not None:
        return wanted.max_steps * wanted.batch_size * plan.recipe.data.max_length
    return (wanted.epochs or 1.0) * len(train) * plan.recipe.data.max_length


def _counts_by_mask(model: PreTrainedModel) -> bool:
    """Mixture-of-experts models weigh their router loss by the attention mask, so padding must be marked for them."""
    return "output_router_logits" in model.config.get_text_config().to_dict()
