"""Rotations of the weights as butterfly products: BOFT (arXiv 2311.06243)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tunekit.model.adapters._shared.structure import check_blocks, refuse_conv1d
from tunekit.recipe.adapters import TargetedBlock

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

LEARNING_RATE = 1e-3


class Config(TargetedBlock):
    """The `adapter:` block of kind boft."""

    kind: Literal["boft"]
    block_size: int = Field(4, ge=2, le=256, description="width of the rotated blocks; must divide the input's width")
    factors: int = Field(1, ge=1, le=8, description="butterfly factors; with 1 the blocks stay apart")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the blocks left out")


def peft_config(config: Config, model: PreTrainedModel, steps: int) -> PeftConfig:
    """PEFT's own configuration for this block.

    Raises:
        UserError: the model's linear layers are of GPT-2's class, or not filled by blocks of that size.
    """
    from peft import BOFTConfig, TaskType

    refuse_conv1d(model, "boft", config.targets)
    check_blocks(model, config.targets, config.block_size)
    return BOFTConfig(
        task_type=TaskType.CAUSAL_LM,
        boft_block_size=config.block_size,
        boft_n_butterfly_factor=config.factors,
        boft_dropout=config.dropout,
    )
