"""8-bit floats with one scale a block of 128 x 128 weights, as DeepSeek's, while loading, on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunekit.recipe.schema import Block

if TYPE_CHECKING:
    import torch

METHOD = "fp8"
FROM_FULL = True
DEVICES = ("cuda",)
PACKAGES = {"kernels": "pip install kernels"}


class Config(Block):
    """The `model.quantize:` block of kind fp8. It needs a GPU of compute capability 8.9 (Ada, Hopper) or more."""

    kind: Literal["fp8"]
    block: int = Field(128, ge=16, description="side of the square of weights that share a scale")
    skip: tuple[str, ...] = Field((), description="modules left as they are; the head always is")


def bits(config: Config) -> int:
    """Bits of one weight."""
    return 8


def quantization_config(config: Config, compute: torch.dtype, skip: list[str] | None) -> Any:
    """transformers' FineGrainedFP8Config."""
    from transformers import FineGrainedFP8Config

    return FineGrainedFP8Config(weight_block_size=(config.block, config.block), modules_to_not_convert=skip)


def stored(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What quantized weights on disk say of the block's keys, and their bits."""
    sizes = set(facts.get("weight_block_size") or ())
    return {"bits": 8, "block": sizes.pop() if len(sizes) == 1 else None}
