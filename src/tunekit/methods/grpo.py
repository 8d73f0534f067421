"""Group relative policy optimization (GRPO): answers are compared with others to the same prompt; no value model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunekit.rl.blocks import RolloutBlock
from tunekit.rl.checks import check_rewards

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunekit.plan.plan import Plan
    from tunekit.rl.policy import PolicyTrainer
    from tunekit.rl.rollouts import Rollout

ISOLATED = True
MATERIAL = "prompts"
check = check_rewards

RECIPE = """\
# Group relative policy optimization. It works as it is: an embedded model on embedded data, offline, on a CPU.
# Every key: docs/recipe.md, or `tunekit schema`. Any key can be overridden: --set train.learning_rate=1e-4
method: grpo

model:
  name: builtin:tiny              # mostly a model that was tuned on instructions

adapter:                          # leave this block out for full fine-tuning
  kind: lora
  r: 16
  alpha: 32

data:
  train:
    - path: builtin:instructions  # prompts, with the right answers where a reward needs them
      format: auto
      limit: 640
  eval: {count: 100}              # held out, never trained
  max_length: 128                 # longest prompt in tokens

grpo:
  reward:                         # summed by weight
    - {kind: regex, pattern: "[.!?。！？]$", name: sentence}   # 1 for an answer that ends as a sentence does
    - {kind: length, max: 16, weight: 0.5}                    # and is short; in tokens
    # - kind: exact_match           # where the data has right answers, and the model finds some of them
    # - {function: my_rewards.py:score}, {model: runs/reward}, ...
  generations: 8                  # answers to each prompt
  max_new_tokens: 32
  temperature: 1.0

train:
  epochs: 1
  batch_size: 8                  # GLOBAL, in prompts
  learning_rate: 3e-4
  warmup: 0.05
  log_every: 1
  seed: 42

eval:
  every: 0.25
"""
"""What `tunekit init grpo` writes."""


class Config(RolloutBlock):
    """The `grpo:` block."""

    generations: int = Field(8, ge=2, le=4096, description="answers drawn to each prompt, which are compared")
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo"] = Field(
        "dapo", description="how the tokens of a step are weighed: grpo by answer, dapo (as TRL) by token, ..."
    )
    importance: Literal["token", "sequence"] = Field(
        "token", description="ratios of tokens, or of whole answers (GSPO, arXiv 2507.18071)"
    )
    scale: Literal["group", "batch", "none"] = Field(
        "group", description="advantages are divided by the standard deviation of the group, of the batch, or not"
    )


def build(
    plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Any, evaluation: Any, staging: Path
) -> PolicyTrainer:
    """The trainer: GRPO (arXiv 2402.03300) and its variants, as TRL's GRPOTrainer; the KL is a part of the loss."""
    from tunekit.rl.compared import compared
    from tunekit.rl.policy import Rule, policy_trainer
    from tunekit.rl.policy_losses import PolicyOptions

    block: Config = plan.recipe.options

    def advantages(rollouts: Sequence[Rollout], price: float) -> None:
        compared(rollouts, block.scale)

    high = 1 + block.clip_high if block.loss == "cispo" else block.clip_high  # CISPO bounds the ratio itself
    options = PolicyOptions(kind=block.loss, importance=block.importance, low=block.clip_low, high=high)
    rule = Rule(advantages, options, kl_in_loss=True)
    return policy_trainer(plan, model, tokenizer, train, evaluation, staging, rule=rule)
