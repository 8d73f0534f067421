"""Products, number by number, of two low-rank matrices: LoHa (arXiv 2108.06098)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tunekit.model.adapters._shared.structure import refuse_conv1d
from tunekit.recipe.adapters import TargetedBlock

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

LEARNING_RATE = 1e-3


class Config(TargetedBlock):
    """The `adapter:` block of kind loha."""

    kind: Literal["loha"]
    r: int = Field(16, ge=1, le=4096, description="rank of each of the two; that of the update is up to r * r")
    alpha: int = Field(16, ge=1, description="scale; the update is multiplied by alpha / r")
    rank_dropout: float = Field(0.0, ge=0, lt=1, description="share of the ranks left out in training")
    module_dropout: float = Field(0.0, ge=0, lt=1, description="share of the layers' adapters left out in training")


def peft_config(config: Config, model: PreTrainedModel, steps: int) -> PeftConfig:
    """PEFT's own configuration for this block.

    Raises:
        UserError: the model's linear layers are of GPT-2's class.
    """
    from peft import LoHaConfig, TaskType

    refuse_conv1d(model, "loha", config.targets)
    return LoHaConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.r,
        alpha=config.alpha,
        rank_dropout=config.rank_dropout,
        module_dropout=config.module_dropout,
    )
