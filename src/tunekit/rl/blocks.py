"""What the methods that learn from rewards have in common in a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from tunekit.recipe.schema import Block
from tunekit.rl.rewarding import Rewarder, RewardsField
from tunekit.rl.rewards._shared.block import unfit


class RolloutBlock(Block):
    """How answers are drawn and rewarded, and what holds the policy to its reference."""

    TOLD: ClassVar[frozenset[str]] = frozenset({
        "reward", "generations", "max_new_tokens", "temperature", "rollout_steps", "passes", "beta", "kl", "reference",
        "engine",
    })  # fmt: skip
    """The keys that `words` tells."""

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
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="what draws answers: the policy itself, or vLLM on its GPU, given its weights"
    )
    vllm_memory: float = Field(0.3, gt=0, le=1, description="share of the GPU that vLLM may take while it draws")

    @model_validator(mode="after")
    def _fits(self) -> RolloutBlock:
        if self.reference == "base" and not self.beta:
            what = "a block in which `reference` stands beside a `beta` above 0"
            raise unfit(what, "add `beta: 0.04`, or leave `reference` out: without a price of the KL there is none")
        return self

    def check_rows(self, rows: Iterable[tuple[str, str]]) -> None:
        """Whether the rewards can use the prepared rows; asked of the data before a model is loaded.

        Args:
            rows: the reference and ``file:line`` of each row.

        Raises:
            DataError: as `Rewarder.check_rows`.
        """
        Rewarder(self.reward).check_rows(rows)

    def words(self) -> list[tuple[str, str]]:
        """What `tunekit plan` shows of the block: each reward, and how answers are drawn."""
        rewards = [
            ("reward" if not at else "", f"{name}: {block.weight:g} x {_of_reward(block)}")
            for at, (name, block) in enumerate(Rewarder(self.reward).named.items())
        ]
        drawn = f"{self.generations} to each prompt, of {self.max_new_tokens:,} tokens at most, at temperature "
        window = f"prompts of {self.rollout_steps} step(s) are answered at once, and learnt from {self.passes} time(s)"
        held = "none (beta 0)" if not self.beta else f"{_REFERENCES[self.reference]}, beta {self.beta:g} ({self.kl})"
        return [
            *rewards,
            ("answers", f"{drawn}{self.temperature:g}{', by vLLM' if self.engine == 'vllm' else ''}"),
            ("a window", window),
            ("reference", held),
        ]


_REFERENCES = {"initial": "the policy as it begins", "base": "the model without its adapter"}


def _of_reward(block: Any) -> str:
    """A reward's kind and the keys that are given."""
    given = block.model_dump(exclude_defaults=True, exclude={"kind", "weight", "name"})
    kind = str(block.kind)
    return kind + "".join(f", {key} {value}" for key, value in given.items())
