"""Kahneman-Tversky optimization (KTO): learns from single answers that were found good or bad."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunekit.recipe.schema import Block
from tunekit.rl.other_reference import check_reference

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunekit.plan.plan import Plan
    from tunekit.rl.kto import KtoTrainer

ISOLATED = True
check = check_reference
MATERIAL = "judged"

RECIPE = """\
# Kahneman-Tversky optimization. It works as it is: an embedded model on embedded data, offline, on a CPU.
# Every key: docs/recipe.md, or `tunekit schema`. Any key can be overridden: --set train.learning_rate=1e-4
method: kto

model:
  name: builtin:tiny              # the model to be aligned: mostly one that was tuned on instructions

adapter:                          # leave this block out for full fine-tuning
  kind: lora
  r: 16
  alpha: 32

data:
  train:
    - path: builtin:preferences   # pairs serve as one good and one bad answer; or answers with a label
      format: auto
  eval: {fraction: 0.1}           # held out, never trained; rows with the same prompt stay together
  max_length: 128                 # prompt and answer, in tokens; 2048 is usual for real models

kto:
  beta: 0.1
  desirable_weight: 1.0           # raise the weight of the rarer kind
  undesirable_weight: 1.0

train:
  epochs: 1
  batch_size: 16                  # GLOBAL, in answers
  learning_rate: 5e-4
  warmup: 0.1
  seed: 42

eval:
  every: 0.25
"""
"""What `tunekit init kto` writes."""


class Config(Block):
    """The `kto:` block."""

    beta: float = Field(0.1, gt=0, le=100, description="price of leaving the reference")
    loss: Literal["kto", "apo_zero_unpaired"] = Field("kto", description="apo_zero_unpaired has no reference point")
    desirable_weight: float = Field(1.0, gt=0, description="of the losses of good answers")
    undesirable_weight: float = Field(1.0, gt=0, description="of the losses of bad answers")
    reference: str = Field(
        "initial",
        min_length=1,
        description="what the policy is held to: initial, itself as it begins; base, the model without its adapter; or "
        "another model's Hub id or folder",
    )


def build(
    plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Any, evaluation: Any, staging: Path
) -> KtoTrainer:
    """The trainer: the mean loss of the global batch's answers, as TRL's KTOTrainer (arXiv 2402.01306)."""
    from tunekit.rl.kto import kto_trainer
    from tunekit.rl.kto_loss import kto_loss

    block: Config = plan.recipe.options
    weights = {"desirable": block.desirable_weight, "undesirable": block.undesirable_weight}
    return kto_trainer(
        plan,
        model,
        tokenizer,
        train,
        evaluation,
        staging,
        loss=lambda ratios, good, z0: kto_loss(ratios, good, beta=block.beta, z0=z0, kind=block.loss, **weights),
        beta=block.beta,
        reference=block.reference,
        mismatched=block.loss == "kto",
    )
