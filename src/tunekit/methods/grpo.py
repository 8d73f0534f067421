"""Group relative policy optimization (GRPO): answers are compared with others to the same prompt; no value model."""

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
    "grpo",
    "Group relative policy optimization",
    """\
  generations: 8                  # answers to each prompt
  max_new_tokens: 32
  temperature: 1.0
""",
)
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
    aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = Field(
        "sum_then_normalize",
        description="rewards are summed and then compared, or compared one by one before (GDPO, arXiv 2601.05242)",
    )
    delta: float | None = Field(
        None, gt=1, le=1000, description="the ratio of a bad answer's token counts up to this (two-sided clipping)"
    )


def check(recipe: Recipe, folder: Path) -> None:
    """Whether the rewards can be used, and what is set means something.

    Raises:
        UserError: they cannot, or it does not.
        MachineError: a reward model's files are not as they were saved.
    """
    block: Config = recipe.options
    clips = {"sapo": ("clip_low", "clip_high", "delta"), "cispo": ("clip_low", "delta")}.get(block.loss, ())
    unused = unused_in(block) | dict.fromkeys(clips, f"the loss {block.loss}")
    if block.aggregation == "normalize_then_sum":
        unused |= dict.fromkeys(("scale", "missing_end_penalty"), f"the aggregation {block.aggregation}")
    refuse_unused(recipe, unused)
    check_rollouts(recipe, folder)


def build(
    plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Any, evaluation: Any, staging: Path
) -> PolicyTrainer:
    """The trainer: GRPO (arXiv 2402.03300) and its variants, as TRL's GRPOTrainer; the KL is a part of the loss."""
    from tunekit.rl.compared import compared, compared_each
    from tunekit.rl.policy import Rule, policy_trainer
    from tunekit.rl.policy_losses import PolicyOptions

    block: Config = plan.recipe.options

    def advantages(rollouts: Sequence[Rollout], price: float) -> None:
        if block.aggregation == "normalize_then_sum":
            compared_each(rollouts, [reward.weight for reward in block.reward])
        else:
            compared(rollouts, block.scale)

    high = 1 + block.clip_high if block.loss == "cispo" else block.clip_high  # CISPO bounds the ratio itself
    options = PolicyOptions(block.loss, block.importance, low=block.clip_low, high=high, cap=block.delta)
    rule = Rule(advantages, options, kl_in_loss=True)
    return policy_trainer(plan, model, tokenizer, train, evaluation, staging, rule=rule)
