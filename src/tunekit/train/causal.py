"""A trainer for next-token prediction on TRL's SFTTrainer, shared by the methods that train a causal model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from tunekit.core.registry import METHODS
from tunekit.data.collate import Collator
from tunekit.plan.plan import Plan
from tunekit.train.arguments import training_arguments
from tunekit.train.isolation import check_isolated
from tunekit.train.trainer import BOOKKEEPING, TunekitTrainer

if TYPE_CHECKING:
    import torch
    from torch import nn


class CausalTrainer(TunekitTrainer, SFTTrainer):
    """TRL's SFTTrainer on examples that tunekit has prepared, with tunekit's guards."""

    def method_state(self) -> dict[str, Any]:
        """TRL's own running means, so that the first line logged after a resumption is the uninterrupted run's."""
        return {"metrics": dict(self._metrics["train"]), "tokens": self._total_train_tokens}

    def restore_method_state(self, values: dict[str, Any]) -> None:
        """Takes back what `method_state` gave."""
        self._metrics["train"].update(values["metrics"])
        self._total_train_tokens = values["tokens"]

    def local_loss(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The summed loss of a batch by the same forward pass as in training, without a word to the other ranks.

        Args:
            model: without the wrapper of distributed training.
            inputs: a batch of the collator, on the model's device.
        """
        kept = {name: value for name, value in inputs.items() if name not in BOOKKEEPING}
        with self.compute_loss_context_manager():
            loss: torch.Tensor = -model(**kept, use_cache=False, fused_lm_head=True).log_probs.sum()
            return loss


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
    arguments = SFTConfig(
        **training_arguments(plan, staging, evaluates=evaluation is not None),
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
        completion_only_loss=False,
    )
    stopping = plan.recipe.train.early_stopping
    callbacks = [EarlyStoppingCallback(stopping.patience, stopping.min_delta)] if stopping else []
    collator = Collator(tokenizer.pad_token_id, with_mask=_counts_by_mask(model))
    trainer = CausalTrainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        data_collator=collator,
        callbacks=callbacks,
    )
    if plan.recipe.data.packing and METHODS.load(plan.method).ISOLATED:
        check_isolated(model, collator, min(plan.micro_batch_size, 2), trainer.accelerator.autocast())
    return trainer


def _counts_by_mask(model: PreTrainedModel) -> bool:
    """Mixture-of-experts models weigh their router loss by the attention mask, so padding must be marked for them."""
    return "output_router_logits" in model.config.get_text_config().to_dict()
