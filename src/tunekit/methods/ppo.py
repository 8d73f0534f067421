"""Proximal policy optimization (PPO): draws answers, and learns from their rewards by clipped steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from tunekit.core.errors import UserError
from tunekit.rl import starters
from tunekit.rl.blocks import RolloutBlock
from tunekit.rl.checks import check_rollouts
from tunekit.rl.unused import refuse_unused, unused_in
from tunekit.rl.values import SEPARATE, SHARED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunekit.plan.plan import Plan
    from tunekit.recipe.schema import Recipe
    from tunekit.rl.policy import PolicyTrainer
    from tunekit.rl.rollouts import Rollout

ISOLATED = True
MATERIAL = "prompts"
RATE_SHARE = 0.05
_HORIZON = 10_000.0  # as in arXiv 1909.08593
RECIPE = starters.prompts(
    "ppo",
    "Proximal policy optimization",
    """\
  generations: 4                  # answers to each prompt
  max_new_tokens: 32
  rollout_steps: 2                # batches of prompts that are answered at once
  passes: 2                       # over each rollout
  beta: 0.05                      # price of a nat of KL, taken from the reward
  value_model: separate           # begins as the policy; a reward model's run: as that; shared: a head alone, cheaper
""",
    batch_size=16,
)
"""What `tunekit init ppo` writes."""


class Config(RolloutBlock):
    """The `ppo:` block."""

    generations: int = Field(1, ge=1, le=4096, description="answers drawn to each prompt")
    passes: int = Field(4, ge=1, le=64, description="PPO epochs: so often each answer is trained on")
    beta: float = Field(0.05, ge=0, le=100, description="price of the KL from the reference, taken from the reward")
    kl: Literal["k1", "k2", "k3"] = Field("k1", description="estimate of the KL a token; k1 is unbiased")
    target: float | None = Field(
        None, gt=0, description="KL of an answer in nats to which the price adapts (arXiv 1909.08593); default: fixed"
    )
    horizon: float | None = Field(
        None, gt=0, description="answers over which the price adapts; 10 000 unless given, and not without a target"
    )
    gamma: float = Field(1.0, gt=0, le=1, description="discount a token")
    lam: float = Field(0.95, ge=0, le=1, description="GAE: 0 trusts the values, 1 the rewards")
    whiten_rewards: bool = Field(False, description="scale the rewards of tokens to variance 1 over the rollout")
    value_coef: float = Field(0.1, ge=0, le=100, description="weight of the values' loss")
    value_clip: float | None = Field(0.2, gt=0, description="values count so far from those at drawing; null: no limit")
    value_model: str = Field(
        SEPARATE,
        min_length=1,
        description="what values are read from: separate (a model of its own that begins as the policy), shared (the "
        "policy's states: cheaper, learns less), or a reward model's run or folder, as which it begins",
    )

    @model_validator(mode="after")
    def _adapts(self) -> Config:
        if self.target is not None and not self.beta:
            raise ValueError("a block in which `target` stands beside a `beta` above 0, from which the price begins")
        return self


def check(recipe: Recipe, folder: Path) -> None:
    """Whether the rewards can be used, and the model that values begin as.

    Raises:
        UserError: what is wrong with either, or a key that would do nothing.
        MachineError: a reward model's files are not as they were saved.
    """
    block: Config = recipe.options
    if block.horizon is not None and block.target is None:
        what = "`horizon` does nothing without a `target`: the price is fixed then"
        raise UserError(what, where="ppo.horizon", fix="give ppo.target, or leave ppo.horizon out")
    refuse_unused(recipe, unused_in(block))
    check_rollouts(recipe, folder)
    value_start(block.value_model, folder)


def value_start(name: str, folder: Path) -> str | Path:
    """What `values.add_model` begins from: the kept word, or the place of a reward model.

    Raises:
        UserError: there is no such folder, or no reward model in it.
        MachineError: its files are not as they were saved.
    """
    from tunekit.rl import reward_model

    if name in (SHARED, SEPARATE):
        return name
    place = next((each for each in (folder / Path(name).expanduser(), Path(name)) if each.exists()), None)
    if place is None:
        fix = f"known: {SHARED}, {SEPARATE}, or the run or folder of a reward model"
        raise UserError(f"there is no folder '{name}'", where="ppo.value_model", fix=fix)
    reward_model.find(place)
    return place


def build(
    plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Any, evaluation: Any, staging: Path
) -> PolicyTrainer:
    """The trainer: PPO (arXiv 1707.06347) for language models (arXiv 1909.08593, 2203.02155), see `docs/rl.md`."""
    from tunekit.rl.advantages import AdaptiveKL
    from tunekit.rl.estimated import Estimate, estimated
    from tunekit.rl.policy import Rule, policy_trainer
    from tunekit.rl.policy_losses import PolicyOptions
    from tunekit.rl.values import add_model

    block: Config = plan.recipe.options
    estimate = Estimate(block.kl, block.gamma, block.lam, block.whiten_rewards)

    def advantages(rollouts: Sequence[Rollout], price: float) -> None:
        estimated(rollouts, price, estimate)

    rule = Rule(
        advantages,
        PolicyOptions(kind="bnpo", low=block.clip_low, high=block.clip_high),
        kl_in_loss=False,
        value_coef=block.value_coef,
        value_clip=block.value_clip,
        controller=AdaptiveKL(block.beta, block.target, block.horizon or _HORIZON) if block.target else None,
    )
    start = value_start(block.value_model, Path(plan.recipe_folder))
    trainer = policy_trainer(plan, model, tokenizer, train, evaluation, staging, rule=rule)
    if start != SHARED:
        add_model(trainer, start)
    return trainer
