"""Odds ratio preference optimization (ORPO): supervised loss and odds ratio in one, without a reference."""

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
RATE_SHARE = 0.5

RECIPE = starters.pairs(
    "orpo",
    "Odds ratio preference optimization",
    """\
  beta: 0.1                       # weight of the odds ratio beside the likelihood of the chosen answer
""",
    rate="1e-3",
)
"""What `tunekit init orpo` writes."""


class Config(Block):
    """The `orpo:` block."""

    beta: float = Field(0.1, gt=0, le=100, description="weight of the odds ratio (lambda in the paper)")


def build(
    plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Any, evaluation: Any, staging: Path
) -> PairTrainer:
    """The trainer: the mean loss of the global batch's pairs (arXiv 2403.07691); there is no reference model."""
    from tunekit.rl.pair_losses import PAIR_LOSSES, implicit_rewards
    from tunekit.rl.pair_options import PairOptions
    from tunekit.rl.pairs import pair_trainer

    block: Config = plan.recipe.options
    options = PairOptions(beta=block.beta)
    loss = PAIR_LOSSES["orpo"]
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
