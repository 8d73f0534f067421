"""bitsandbytes: 4 bits (nf4, fp4; arXiv 2305.14314) or 8 bits (LLM.int8(), arXiv 2208.07339), no text needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from tunekit.compress.contract import TRANSFORMERS, Making, Weight
from tunekit.compress.skipping import is_skipped, skip_problems
from tunekit.core.errors import Problem
from tunekit.model.quantizers._shared.wishes import kept
from tunekit.recipe.schema import Block

KINDS: Mapping[str, str] = {
    "nf4": "4 bits, values spread as a normal distribution's; 4.1 with scales",
    "fp4": "4-bit floats; 4.1 with scales",
    "int8": "8 bits, one scale a row; inputs are rounded too, their outliers not",
}
CALIBRATED: frozenset[str] = frozenset()
EXACT: frozenset[str] = frozenset()
PACKAGES: Mapping[str, str] = {"bitsandbytes": "pip install 'bitsandbytes>=0.50'"}
DEVICES: Mapping[str, tuple[str, ...]] = {}
RUNTIME = TRANSFORMERS
BLOCK, NESTED = 64, 256
"""Weights that share a scale, and scales that share one of their own."""
NAMES = 120
"""Bytes, about, of what bitsandbytes writes of each 4-bit tensor as JSON: its kind, shape and types."""


class Config(Block):
    """Options of bitsandbytes."""

    double_quant: bool = Field(True, description="of 4 bits: quantize the scales as well, 0.4 bits a weight less")
    skip: tuple[str, ...] = Field((), description="modules left as they are; the head always is")


def problems(kind: str, config: Config, model: Mapping[str, Any], weights: Sequence[Weight]) -> list[Problem]:
    """What stands against it: options of 4 bits for 8, names in `skip`."""
    found = skip_problems(config.skip, weights)
    if kind == "int8" and "double_quant" in config.model_fields_set:
        found.append(Problem("double_quant belongs to 4 bits", "to", "leave it out"))
    return found


def bits(kind: str, config: Config, weight: Weight) -> float:
    """Bits on the disk for one value, with scales, their own scales, and what else is kept beside a tensor."""
    if weight.role != "linear" or is_skipped(weight.name, config.skip):
        return weight.bits
    values = math.prod(weight.shape)
    if kind == "int8":
        return 8 + 32 * weight.shape[0] / values + 8 / values  # and one byte that names the format
    blocks = math.ceil(values / BLOCK)
    tables = 16 * 4  # the values that 4 bits stand for
    if config.double_quant:
        scales = blocks + 4 * math.ceil(blocks / NESTED) + 256 * 4  # bytes: scales, their scales, their values
    else:
        scales = 4 * blocks
    return 4 + 8 * (scales + tables + NAMES) / values


def make(making: Making) -> None:
    """Loads the weights quantized, and saves them before anything has been computed with them.

    On a CPU the first pass forward packs 4-bit weights anew, and what is saved then cannot be loaded.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    config = making.config
    own = AutoConfig.from_pretrained(making.source, trust_remote_code=False)
    compute = own.dtype if own.dtype is not None else torch.float32
    skip = kept(config, own)[0]
    if making.kind == "int8":
        quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    else:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=making.kind, bnb_4bit_use_double_quant=config.double_quant,
            bnb_4bit_compute_dtype=compute, llm_int8_skip_modules=skip,
        )  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        making.source, quantization_config=quantization, dtype="auto", use_safetensors=True, trust_remote_code=False,
        device_map={"": device},
    )  # fmt: skip
    model.save_pretrained(making.target)
