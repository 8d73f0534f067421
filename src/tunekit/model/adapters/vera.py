"""Two trained vectors a layer on random matrices that all layers share: VeRA (arXiv 2310.11454)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tunekit.recipe.adapters import TargetedBlock

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

LEARNING_RATE = 4e-3


class Config(TargetedBlock):
    """The `adapter:` block of kind vera."""

    kind: Literal["vera"]
    r: int = Field(256, ge=1, le=8192, description="rank of the random matrices")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the adapter's input")
    d_initial: float = Field(0.1, gt=0, le=10, description="first value of the vector on the rank")
    projection_seed: int = Field(0, ge=0, le=2**32 - 1, description="of the random matrices, which are saved too")


def peft_config(config: Config, model: PreTrainedModel, steps: int) -> PeftConfig:
    """PEFT's own configuration for this block."""
    from peft import TaskType, VeraConfig

    return VeraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.r,
        vera_dropout=config.dropout,
        d_initial=config.d_initial,
        projection_prng_key=config.projection_seed,
    )
