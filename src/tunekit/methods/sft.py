"""Supervised fine-tuning on conversations, instructions or prompt-completion pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.recipe.schema import Block

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunekit.plan.plan import Plan
    from tunekit.train.causal import CausalTrainer

ISOLATED = True
"""Packed examples never see each other."""


class Config(Block):
    """The `sft:` block. What sft needs is in the shared blocks."""


def build(
    plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Any, evaluation: Any, staging: Path
) -> CausalTrainer:
    """The trainer: cross-entropy on the trained tokens, a mean over those of the global batch (TRL's SFTTrainer)."""
    from tunekit.train.causal import causal_trainer

    return causal_trainer(plan, model, tokenizer, train, evaluation, staging)
