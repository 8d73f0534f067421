"""Kronecker products of small matrices: LoKr (arXiv 2309.14859)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from tunekit.model.adapters._shared.structure import refuse_conv1d
from tunekit.recipe.adapters import TargetedBlock

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

LEARNING_RATE = 3e-3


class Config(TargetedBlock):
    """The `adapter:` block of kind lokr."""

    kind: Literal["lokr"]
    r: int = Field(16, ge=1, le=4096, description="rank of the larger factor")
    alpha: int = Field(16, ge=1, description="scale; the update is multiplied by alpha / r")
    factor: int = Field(-1, ge=-1, description="width of the smaller factor; -1: near the square root of the layer's")
    decompose_both: bool = Field(False, description="low rank in the smaller factor too")
    rank_dropout: float = Field(0.0, ge=0, lt=1, description="share of the ranks left out in training")
    module_dropout: float = Field(0.0, ge=0, lt=1, description="share of the layers' adapters left out in training")

    @field_validator("factor")
    @classmethod
    def _not_zero(cls, value: int) -> int:
        if value == 0:
            raise ValueError("-1, or at least 1")
        return value


def peft_config(config: Config, model: PreTrainedModel, steps: int) -> PeftConfig:
    """PEFT's own configuration for this block.

    Raises:
        UserError: the model's linear layers are of GPT-2's class.
    """
    from peft import LoKrConfig, TaskType

    refuse_conv1d(model, "lokr", config.targets)
    return LoKrConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.r,
        alpha=config.alpha,
        decompose_factor=config.factor,
        decompose_both=config.decompose_both,
        rank_dropout=config.rank_dropout,
        module_dropout=config.module_dropout,
    )
