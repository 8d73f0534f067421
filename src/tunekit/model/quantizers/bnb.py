"""4 bits (nf4, fp4; arXiv 2305.14314) or 8 bits (LLM.int8(), arXiv 2208.07339) with bitsandbytes, while loading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from tunekit.recipe.schema import Block

if TYPE_CHECKING:
    import torch

METHOD = "bitsandbytes"
FROM_FULL = True
DEVICES = ("cpu", "cuda")
PACKAGES = {"bitsandbytes": "pip install 'bitsandbytes>=0.50'"}


class Config(Block):
    """The `model.quantize:` block of kind bnb."""

    kind: Literal["bnb"]
    bits: Literal[4, 8] = Field(4, description="of a weight")
    type: Literal["nf4", "fp4"] | None = Field(None, description="the 16 values that 4 bits stand for; default nf4")
    double_quant: bool | None = Field(
        None, description="quantize the scales of 4-bit weights as well: 0.4 bits a weight less; default true"
    )
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="in which 4-bit weights are multiplied; auto: the run's precision"
    )
    skip: tuple[str, ...] = Field((), description="modules left as they are; the head always is")

    @model_validator(mode="after")
    def _four_bits_only(self) -> Config:
        if self.bits == 8:
            given = {"type": self.type, "double_quant": self.double_quant, "compute_dtype": self.compute_dtype}
            for key, value in given.items():
                if value not in (None, "auto"):
                    raise ValueError(f"{key} belongs to 4 bits; leave it out")
        return self


def bits(config: Config) -> int:
    """Bits of one weight."""
    return config.bits


def quantization_config(config: Config, compute: torch.dtype, skip: list[str] | None) -> Any:
    """transformers' BitsAndBytesConfig.

    Args:
        config: the block.
        compute: the run's arithmetic, which ``compute_dtype: auto`` stands for.
        skip: full names of the modules left as they are, the head among them; None: the head alone.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if config.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.type or "nf4",
        bnb_4bit_use_double_quant=config.double_quant is not False,
        bnb_4bit_compute_dtype=compute if config.compute_dtype == "auto" else getattr(torch, config.compute_dtype),
        llm_int8_skip_modules=skip,
    )


def stored(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What quantized weights on disk say of the block's keys."""
    if facts.get("load_in_8bit"):
        return {"bits": 8}
    return {
        "bits": 4,
        "type": facts.get("bnb_4bit_quant_type", "fp4"),
        "double_quant": facts.get("bnb_4bit_use_double_quant", False),
    }
