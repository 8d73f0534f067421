"""Weights as they are, in 32 or 16 bits, in safetensors files of a chosen size."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator

from tunekit.compress.contract import TRANSFORMERS, Making, Weight
from tunekit.core.errors import Problem
from tunekit.recipe.schema import Block

KINDS: Mapping[str, str] = {
    "float32": "32-bit floats",
    "bfloat16": "16-bit floats of the range of 32 bits, with 8 bits of fraction",
    "float16": "16-bit floats with 11 bits of fraction, up to 65,504",
}
CALIBRATED: frozenset[str] = frozenset()
EXACT = frozenset(KINDS)
PACKAGES: Mapping[str, str] = {}
DEVICES: Mapping[str, tuple[str, ...]] = {}
RUNTIME = TRANSFORMERS


class Config(Block):
    """Options of plain weights."""

    shard_size: str = Field("5GB", description="of a file, at most, such as 2GB")

    @field_validator("shard_size")
    @classmethod
    def _is_size(cls, value: str) -> str:
        if re.fullmatch(r"[1-9]\d*(KB|MB|GB)", value) is None:
            raise ValueError("a whole number of KB, MB or GB, such as 2GB")
        return value


def problems(kind: str, config: Config, model: Mapping[str, Any], weights: Sequence[Weight]) -> list[Problem]:
    """Nothing stands against plain weights."""
    return []


def bits(kind: str, config: Config, weight: Weight) -> float:
    """Bits of one value on the disk."""
    return 32 if kind == "float32" else 16


def make(making: Making) -> None:
    """Writes config and weights; what does not fit into the type is found by the proof."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        making.source, dtype=making.kind, use_safetensors=True, trust_remote_code=False
    )
    model.save_pretrained(making.target, max_shard_size=making.config.shard_size)
