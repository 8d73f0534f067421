"""Next-token prediction on text, from random weights or continuing from a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.recipe.schema import Block

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunekit.plan.plan import Plan
    from tunekit.train.causal import CausalTrainer

ISOLATED = False
"""Packed documents follow one another as in a stream, each ended by EOS; attention keeps its fast causal path."""


class Config(Block):
    """The `pretrain:` block. What pretrain needs is in the shared blocks."""


def build(
    plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Any, evaluation: Any, staging: Path
) -> CausalTrainer:
    """The trainer: cross-entropy on every token but the first, a mean over those of the global batch."""
    from tunekit.train.causal import causal_trainer

    return causal_trainer(plan, model, tokenizer, train, evaluation, staging)
