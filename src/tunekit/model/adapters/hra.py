"""Chains of trained reflections of the weights: HRA (arXiv 2405.17484)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from tunekit.model.adapters._shared.structure import refuse_conv1d
from tunekit.recipe.adapters import TargetedBlock

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

LEARNING_RATE = 2e-3


class Config(TargetedBlock):
    """The `adapter:` block of kind hra."""

    kind: Literal["hra"]
    r: int = Field(8, ge=2, le=1024, description="number of reflections; even, so that they begin by cancelling out")
    orthogonal: bool = Field(False, description="make the reflections' vectors orthogonal (Gram-Schmidt)")

    @field_validator("r")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("an even number")
        return value


def peft_config(config: Config, model: PreTrainedModel, steps: int) -> PeftConfig:
    """PEFT's own configuration for this block.

    Raises:
        UserError: the model's linear layers are of GPT-2's class.
    """
    from peft import HRAConfig, TaskType

    refuse_conv1d(model, "hra", config.targets)
    return HRAConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.r,
        apply_GS=config.orthogonal,
    )
