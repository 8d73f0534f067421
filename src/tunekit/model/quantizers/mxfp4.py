"""Experts stored as 4-bit floats (MXFP4, as gpt-oss); unpacked to bfloat16 to be trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from tunekit.recipe.schema import Block

if TYPE_CHECKING:
    import torch

METHOD = "mxfp4"
FROM_FULL = False
DEVICES = ("cpu", "cuda")
PACKAGES: dict[str, str] = {}


class Config(Block):
    """The `model.quantize:` block of kind mxfp4. Its kernels have no backward pass, so the weights are unpacked."""

    kind: Literal["mxfp4"]


def bits(config: Config) -> int:
    """Bits of one weight in memory: of bfloat16."""
    return 16


def quantization_config(config: Config, compute: torch.dtype, skip: list[str] | None) -> Any:
    """transformers' Mxfp4Config that unpacks."""
    from transformers import Mxfp4Config

    return Mxfp4Config(dequantize=True)


def stored(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What quantized weights on disk say of the block's keys: nothing, but their bits."""
    return {"bits": 4}
