"""REINFORCE leave-one-out (RLOO): an answer's baseline is the mean reward of the others to the same prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunekit.recipe.schema import Recipe
from tunekit.rl import starters
from tunekit.rl.blocks import RolloutBlock
from tunekit.rl.checks import check_rollouts
from tunekit.rl.unused import refuse_unused, unused_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunekit.plan.plan import Plan
    from tunekit.rl.policy import PolicyTrainer
    from tunekit.rl.rollouts import Rollout

ISOLATED = True
MATERIAL = "prompts"
RATE_SHARE = 0.05

RECIPE = starters.prompts(
    "rloo",
    "REINFORCE leave-one-out",
    """\
  generations: 8                  # answers to each prompt
  max_new_tokens: 32
  beta: 0.05                      # price of a nat of KL, taken from the reward
""",
)
"""What `tunekit init rloo` writes."""


class Config(RolloutBlock):
    """The `rloo:` block."""

    generations: int = Field(8, ge=2, le=4096, description="answers drawn to each prompt, which are compared")
    beta: float = Field(0.05, ge=0, le=100, description="price of the KL from the reference, taken from the reward")
    kl: Literal["k1", "k2", "k3"] = Field("k1", description="estimate of the KL a token; k1 is unbiased")
    normalise: bool = Field(False, description="bring the advantages of a rollout to mean 0 and deviation 1")


def check(recipe: Recipe, folder: Path) -> None:
    """Whether the rewards can be used, and what is set means something.

    Raises:
        UserError: they cannot, or it does not.
        MachineError: a reward model's files are not as they were saved.
    """
    refuse_unused(recipe, unused_in(recipe.options))
    check_rollouts(recipe, folder)


def build(
    plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Any, evaluation: Any, staging: Path
) -> PolicyTrainer:
    """The trainer: RLOO (arXiv 2402.14740) with clipped ratios of whole answers, as TRL's RLOOTrainer."""
    from tunekit.rl.compared import left_out
    from tunekit.rl.policy import Rule, policy_trainer
    from tunekit.rl.policy_losses import PolicyOptions

    block: Config = plan.recipe.options

    def advantages(rollouts: Sequence[Rollout], price: float) -> None:
        left_out(rollouts, price, block.kl, normalise=block.normalise)

    options = PolicyOptions(kind="grpo", importance="product", low=block.clip_low, high=block.clip_high)
    rule = Rule(advantages, options, kl_in_loss=False)
    return policy_trainer(plan, model, tokenizer, train, evaluation, staging, rule=rule)
