"""Full-rank updates from scaled random bases: RandLoRA (arXiv 2502.00987)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tunekit.recipe.adapters import TargetedBlock

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

LEARNING_RATE = 1e-4


class Config(TargetedBlock):
    """The `adapter:` block of kind randlora."""

    kind: Literal["randlora"]
    r: int = Field(32, ge=1, le=4096, description="rank of each random basis; a smaller one trains more")
    alpha: int | None = Field(None, ge=1, description="scale; the update is multiplied by alpha / r; default 20 * r")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the adapter's input")
    projection_seed: int = Field(0, ge=0, le=2**32 - 1, description="of the random bases, which are saved too")


def peft_config(config: Config, model: PreTrainedModel, steps: int) -> PeftConfig:
    """PEFT's own configuration for this block."""
    from peft import RandLoraConfig, TaskType

    return RandLoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.r,
        randlora_alpha=20 * config.r if config.alpha is None else config.alpha,
        randlora_dropout=config.dropout,
        projection_prng_key=config.projection_seed,
    )
