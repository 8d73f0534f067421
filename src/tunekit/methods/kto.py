"""Kahneman-Tversky optimization (KTO): learns from single answers that were found good or bad."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunekit.recipe.schema import Block
from tunekit.rl import starters
from tunekit.rl.other_reference import check_reference

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunekit.plan.plan import Plan
    from tunekit.rl.kto import KtoTrainer

ISOLATED = True
check = check_reference
MATERIAL = "judged"
RATE_SHARE = 0.05

RECIPE = starters.pairs(
    "kto",
    "Kahneman-Tversky optimization",
    """\
  beta: 0.1
  desirable_weight: 1.0           # raise the weight of the rarer kind
  undesirable_weight: 1.0
""",
    rate="5e-4",
    data="pairs serve as one good and one bad answer; or answers with a label",
    unit="answers",
)
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
        "another model: a Hub id, a run, or the folder of a model or adapter",
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
