"""Simple preference optimization (SimPO): length-normalised likelihoods and a margin, without a reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tunekit.recipe.schema import Block
from tunekit.rl import starters

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunekit.plan.plan import Plan
    from tunekit.rl.pairs import PairTrainer

ISOLATED = True
MATERIAL = "pairs"
RATE_SHARE = 0.05

RECIPE = starters.pairs(
    "simpo",
    "Simple preference optimization",
    """\
  beta: 2.0                       # scale of the rewards; 2.0 to 10
  gamma: 1.0                      # margin asked for; 0.5 to 1.5
""",
    rate="5e-4",
)
"""What `tunekit init simpo` writes."""


class Config(Block):
    """The `simpo:` block."""

    beta: float = Field(2.0, gt=0, le=100, description="scale of the rewards, which are mean log-probabilities a token")
    gamma: float = Field(1.0, ge=0, le=100, description="reward margin asked for of every pair")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of pairs whose order is thought wrong")
    nll_weight: float = Field(0.0, ge=0, description="weight of the chosen answer's likelihood (CPO-SimPO)")


def build(
    plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Any, evaluation: Any, staging: Path
) -> PairTrainer:
    """The trainer: the mean loss of the global batch's pairs (arXiv 2405.14734); there is no reference model."""
    from tunekit.rl.pair_losses import PAIR_LOSSES, implicit_rewards
    from tunekit.rl.pair_options import PairOptions
    from tunekit.rl.pairs import pair_trainer

    block: Config = plan.recipe.options
    options = PairOptions(
        beta=block.beta, gamma=block.gamma, label_smoothing=block.label_smoothing, nll_weight=block.nll_weight
    )
    loss = PAIR_LOSSES["simpo"]
    return pair_trainer(
        plan,
        model,
        tokenizer,
        train,
        evaluation,
        staging,
        loss=lambda pairs: loss(pairs, options),
        rewards=lambda pairs: implicit_rewards(pairs, block.beta, averaged=True),
    )
