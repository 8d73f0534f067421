"""8 bits (int8, float8) with torchao, while loading: one scale a row, dequantized where it is multiplied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunekit.recipe.schema import Block

if TYPE_CHECKING:
    import torch

METHOD = "torchao"
FROM_FULL = True
DEVICES = ("cpu", "cuda")
PACKAGES = {"torchao": "pip install 'torchao>=0.18'"}
_KINDS = {"int8": "Int8WeightOnlyConfig", "float8": "Float8WeightOnlyConfig"}


class Config(Block):
    """The `model.quantize:` block of kind torchao. transformers trains on its 8-bit weights only."""

    kind: Literal["torchao"]
    type: Literal["int8", "float8"] = Field("int8", description="whole numbers, or floats of 4 and 3 bits (e4m3)")
    skip: tuple[str, ...] = Field((), description="modules left as they are; the head always is")


def bits(config: Config) -> int:
    """Bits of one weight."""
    return 8


def quantization_config(config: Config, compute: torch.dtype, skip: list[str] | None) -> Any:
    """transformers' TorchAoConfig; it multiplies in the type of the input, so ``compute`` is not asked.

    Raises:
        ImportError: torchao is not installed.
    """
    import importlib

    from transformers import TorchAoConfig

    kinds = importlib.import_module("torchao.quantization")  # by name: mypy need not have it
    return TorchAoConfig(getattr(kinds, _KINDS[config.type])(), modules_to_not_convert=skip)


def stored(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What quantized weights on disk say of the block's keys."""
    name = facts.get("quant_type", {}).get("default", {}).get("_type", "unknown")
    return {"type": next((kind for kind, own in _KINDS.items() if own == name), name)}
