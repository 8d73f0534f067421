"""The weights of the normalization layers only: LN tuning (arXiv 2312.11420)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import field_validator

from tunekit.model.adapters._shared.blocks import OwnTargetsBlock
from tunekit.model.adapters._shared.structure import norms
from tunekit.recipe.adapters import GROUPS, Targets

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

TRAINS_BASE = True
"""What it trains lies in the base's own type, or is one of its modules."""
LEARNING_RATE = 3e-3


class Config(OwnTargetsBlock):
    """The `adapter:` block of kind ln_tuning; without `targets`: every normalization layer."""

    kind: Literal["ln_tuning"]

    @field_validator("targets")
    @classmethod
    def _norms(cls, value: Targets | None) -> Targets | None:
        words = {value} if isinstance(value, str) else set(value or ())
        if words & set(GROUPS):
            raise ValueError(f"normalization layers, not {min(words & set(GROUPS))}")
        return value


def peft_config(config: Config, model: PreTrainedModel, steps: int) -> PeftConfig:
    """PEFT's own configuration for this block.

    Raises:
        UserError: the model has no normalization layers with weights.
    """
    from peft import LNTuningConfig, TaskType

    return LNTuningConfig(task_type=TaskType.CAUSAL_LM, target_modules=norms(model) if config.targets is None else None)
