"""Weights that GPTQ has quantized (arXiv 2210.17323), loaded with gptqmodel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunekit.recipe.schema import Block

if TYPE_CHECKING:
    import torch

METHOD = "gptq"
FROM_FULL = False
DEVICES = ("cpu", "cuda")
PACKAGES = {"optimum": "pip install optimum", "gptqmodel": "pip install gptqmodel"}


class Config(Block):
    """The `model.quantize:` block of kind gptq: the weights are quantized already, and the block may say how."""

    kind: Literal["gptq"]
    bits: Literal[2, 3, 4, 8] | None = Field(None, description="checked against the weights; default: theirs")


def bits(config: Config) -> int:
    """Bits of one weight; 4, the usual, where the block leaves them to the weights."""
    return config.bits or 4


def quantization_config(config: Config, compute: torch.dtype, skip: list[str] | None) -> Any:
    """transformers' GPTQConfig; only its backend counts, the rest stands beside the weights."""
    from transformers import GPTQConfig

    return GPTQConfig(bits=bits(config), backend="auto_trainable")  # other kernels have no backward pass


def stored(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What quantized weights on disk say of the block's keys."""
    return {"bits": facts.get("bits")}
