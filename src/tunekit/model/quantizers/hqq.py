"""1 to 8 bits with half-quadratic quantization (hqq), while loading, where transformers can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunekit.recipe.schema import Block

if TYPE_CHECKING:
    import torch

METHOD = "hqq"
FROM_FULL = True
DEVICES = ("cuda",)
PACKAGES = {"hqq": "pip install 'hqq>=0.2.8'"}


class Config(Block):
    """The `model.quantize:` block of kind hqq."""

    kind: Literal["hqq"]
    bits: Literal[1, 2, 3, 4, 8] = Field(4, description="of a weight")
    group_size: int = Field(64, ge=8, description="weights that share a scale; it divides the rows' length")
    skip: tuple[str, ...] = Field((), description="modules left as they are; the head always is")


def bits(config: Config) -> int:
    """Bits of one weight."""
    return config.bits


def quantization_config(config: Config, compute: torch.dtype, skip: list[str] | None) -> Any:
    """transformers' HqqConfig.

    Raises:
        ImportError: hqq is not installed.
    """
    from transformers import HqqConfig

    return HqqConfig(nbits=config.bits, group_size=config.group_size, axis=1, skip_modules=skip or ["lm_head"])


def stored(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What quantized weights on disk say of the block's keys."""
    found = facts.get("quant_config", {}).get("weight_quant_params", {})
    return {"bits": found.get("nbits"), "group_size": found.get("group_size")}
