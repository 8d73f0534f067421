"""Weights that AWQ has quantized to 4 bits (arXiv 2306.00978), loaded with gptqmodel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from tunekit.recipe.schema import Block

if TYPE_CHECKING:
    import torch

METHOD = "awq"
FROM_FULL = False
DEVICES = ("cpu", "cuda")
PACKAGES = {"gptqmodel": "pip install 'gptqmodel>=5'"}


class Config(Block):
    """The `model.quantize:` block of kind awq: the weights are quantized already, and say how."""

    kind: Literal["awq"]


def bits(config: Config) -> int:
    """Bits of one weight."""
    return 4


def quantization_config(config: Config, compute: torch.dtype, skip: list[str] | None) -> Any:
    """transformers' AwqConfig; only its backend counts, the rest stands beside the weights."""
    from transformers import AwqConfig

    return AwqConfig(backend="auto_trainable")  # other kernels have no backward pass


def stored(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What quantized weights on disk say of the block's keys, and their bits."""
    return {"bits": facts.get("bits", 4)}
