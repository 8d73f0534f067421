"""A reward model: scores answers, the chosen one of a pair higher (Bradley-Terry); ppo, grpo and rloo take it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tunekit.recipe.schema import Block

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunekit.plan.plan import Plan
    from tunekit.rl.scores import ScoreTrainer

ISOLATED = True
MATERIAL = "pairs"
HEAD = "score"
"""The model gets one output in the place of its vocabulary."""

RECIPE = """\
# A reward model. It works as it is: an embedded model on embedded data, offline, on a CPU.
# Every key: docs/recipe.md, or `tunekit schema`. Any key can be overridden: --set train.learning_rate=1e-4
method: reward

model:
  name: builtin:tiny              # the model that learns to judge

adapter:                          # leave this block out for full fine-tuning
  kind: lora
  r: 16
  alpha: 32

data:
  train:
    - path: builtin:preferences   # chosen and rejected answers: yours in any of the forms of docs/data.md
      format: auto
  eval: {fraction: 0.1}           # held out, never trained; rows with the same prompt stay together
  max_length: 128                 # prompt and answer, in tokens; 2048 is usual for real models

reward:
  centre: 0.01                    # keeps the scores around 0

train:
  epochs: 1
  batch_size: 16                  # GLOBAL, in pairs
  learning_rate: 1e-3
  warmup: 0.1
  seed: 42

eval:
  every: 0.25
"""
"""What `tunekit init reward` writes."""


class Config(Block):
    """The `reward:` block."""

    centre: float = Field(
        0.0, ge=0, description="weight of the squared sum of a pair's scores, which keeps them around 0 (0.01 is usual)"
    )
    margins: bool = Field(True, description="ask for the data's own margin between the scores, where a row has one")


def build(
    plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Any, evaluation: Any, staging: Path
) -> ScoreTrainer:
    """The trainer: the mean loss of the global batch's pairs, as TRL's RewardTrainer."""
    from tunekit.rl.scores import score_trainer

    block: Config = plan.recipe.options
    return score_trainer(plan, model, tokenizer, train, evaluation, staging, centre=block.centre, margins=block.margins)
