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

RECIPE = """\
# Pretraining: next-token prediction on text. It works as it is: fresh weights on embedded text, offline, on a CPU.
# Every key: docs/recipe.md, or `tunekit schema`. Any key can be overridden: --set train.learning_rate=1e-4
method: pretrain

model:
  name: builtin:tiny?init=random  # fresh weights; name a Hub id or folder to continue from its weights

data:
  train:
    - path: builtin:text          # your file, folder, glob or Hub data set; txt: one document a line (text_unit)
      limit: 5000
  eval: {fraction: 0.02}
  max_length: 256                 # longer documents are cut into several rows, nothing is lost
  packing: true                   # several documents in a row

train:
  max_steps: 100                  # or epochs
  batch_size: 16                  # GLOBAL, in packed rows
  learning_rate: 2e-3
  weight_decay: 0.1
  adam_beta2: 0.95
  seed: 42

eval:
  every: 0.25
"""
"""What `tunekit init pretrain` writes."""


class Config(Block):
    """The `pretrain:` block. What pretrain needs is in the shared blocks."""


def build(
    plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Any, evaluation: Any, staging: Path
) -> CausalTrainer:
    """The trainer: cross-entropy on every token but the first, a mean over those of the global batch."""
    from tunekit.train.causal import causal_trainer

    return causal_trainer(plan, model, tokenizer, train, evaluation, staging)
