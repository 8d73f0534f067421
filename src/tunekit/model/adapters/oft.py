"""Rotations of the weights in blocks: OFT (arXiv 2306.07280, 2506.19847)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tunekit.model.adapters._shared.structure import check_blocks, refuse_conv1d
from tunekit.recipe.adapters import TargetedBlock

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

LEARNING_RATE = 2e-4


class Config(TargetedBlock):
    """The `adapter:` block of kind oft."""

    kind: Literal["oft"]
    block_size: int = Field(32, ge=2, le=4096, description="width of the rotated blocks; must divide the input's width")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the blocks left out")
    share: bool = Field(False, description="one rotation for all blocks of a layer")
    constrained: bool = Field(False, description="COFT: the rotation stays near the identity")
    cayley_terms: int = Field(
        5, ge=1, le=32, description="terms of the series for the inverse; more are nearer to a rotation"
    )


def peft_config(config: Config, model: PreTrainedModel, steps: int) -> PeftConfig:
    """PEFT's own configuration for this block.

    Raises:
        UserError: the model's linear layers are of GPT-2's class, or not filled by blocks of that size.
    """
    from peft import OFTConfig, TaskType

    refuse_conv1d(model, "oft", config.targets)
    check_blocks(model, config.targets, config.block_size)
    return OFTConfig(
        task_type=TaskType.CAUSAL_LM,
        oft_block_size=config.block_size,
        module_dropout=config.dropout,
        block_share=config.share,
        coft=config.constrained,
        num_cayley_neumann_terms=config.cayley_terms,
    )
