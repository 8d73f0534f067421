"""What the methods that learn from rewards have in common in a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tunekit.recipe.schema import Block
from tunekit.rl.rewarding import RewardsField


class RolloutBlock(Block):
    """How answers are drawn and rewarded, and what holds the policy to its reference."""

    reward: RewardsField = Field(
        description="rewards, each times its weight: {kind: exact_match}, {function: my_rewards.py:score}, "
        "{model: runs/reward}, ..."
    )
    generations: int = Field(8, ge=1, le=4096, description="answers drawn to each prompt")
    max_new_tokens: int = Field(256, ge=1, le=65_536, description="longest answer in tokens")
    temperature: float = Field(1.0, gt=0, le=10, description="of drawing; log-probabilities are taken at it too")
    rollout_steps: int = Field(
        1, ge=1, le=4096, description="so many batches of prompts (train.batch_size) are answered at once"
    )
    passes: int = Field(
        1, ge=1, le=64, description="so often each answer is trained on before new ones are drawn (mu in GRPO)"
    )
    beta: float = Field(0.0, ge=0, le=100, description="price of the KL from the reference; 0: there is none")
    kl: Literal["k1", "k2", "k3"] = Field(
        "k3", description="estimate of the KL a token (Schulman 2020): k1 unbiased, k3 never negative"
    )
    reference: Literal["initial", "base"] = Field(
        "initial", description="what the policy is held to: itself as it begins, or the model without its adapter"
    )
    clip_low: float = Field(0.2, gt=0, lt=1, description="the ratio to the policy that drew counts down to 1 - this")
    clip_high: float = Field(0.2, gt=0, le=10, description="and up to 1 + this (0.28 in DAPO)")
    target_kl: float | None = Field(
        None,
        gt=0,
        description="passes over a rollout end when the policy is further than this from the one that drew",
    )
    entropy_coef: float = Field(0.0, ge=0, le=10, description="weight of an entropy bonus")
    missing_end_penalty: float = Field(
        0.0, ge=0, description="taken from the reward of an answer that does not come to its end"
    )
    rollout_batch_size: int = Field(64, ge=1, le=65_536, description="answers that are drawn side by side")

    @model_validator(mode="after")
    def _fits(self) -> RolloutBlock:
        if self.reference == "base" and not self.beta:
            raise ValueError("a block in which `reference` stands beside a `beta` above 0")
        return self
