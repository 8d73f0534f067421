"""bitsandbytes: 4 bits (nf4, fp4; arXiv 2305.14314) or 8 bits (LLM.int8(), arXiv 2208.07339), no text needed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from tunekit.compress.backends._shared.given import common_problems, is_quantized, kept_bits
from tunekit.compress.backends._shared.overflow import too_large
from tunekit.compress.contract import TRANSFORMERS, Making, Weight
from tunekit.compress.source import weights_of
from tunekit.core.errors import Problem, UserError, raise_all
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
PACKED = 32
"""Rows that are packed together where a processor has instructions for it, in blocks that share a scale."""
_OFFSET = 0.12345678901234567
"""Stands for the mean of the scales: its digits are written out beside each tensor."""


class Config(Block):
    """Options of bitsandbytes."""

    double_quant: bool = Field(True, description="of 4 bits: quantize the scales as well, 0.4 bits a weight less")
    skip: tuple[str, ...] = Field((), description="modules left as they are; the head always is")


def problems(kind: str, config: Config, model: Mapping[str, Any], weights: Sequence[Weight]) -> list[Problem]:
    """What stands against it: options of 4 bits for 8, names in `skip`, experts that it would pass over, shapes."""
    own = frozenset[str]() if kind == "int8" else frozenset({"double_quant"})
    found = list(common_problems(kind, config, model, weights, own=own, turned=True))
    return found if found or kind == "int8" or not _packs() else list(_unpackable(config, weights))


def _packs() -> bool:
    """Whether this processor packs 4-bit weights anew before it computes with them; found by what users load them by.

    Training and evaluation of tunekit's own keep it from that, see `kbit.keep_unpacked`.
    """
    import torch

    if torch.cuda.is_available():
        return False
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16())


def _unpackable(config: Config, weights: Sequence[Weight]) -> Iterator[Problem]:
    odd = [w for w in weights if is_quantized(w, config.skip) and (_rows(w) % PACKED or _columns(w) % BLOCK)]
    if odd:
        rows, columns = _rows(odd[0]), _columns(odd[0])
        what = f"'{odd[0].name}' and {len(odd) - 1} more are" if len(odd) > 1 else f"'{odd[0].name}' is"
        yield Problem(
            f"{what} of {rows} x {columns} numbers or the like; on this processor bitsandbytes computes with 4-bit "
            f"weights only where these are multiples of {PACKED} and {BLOCK}",
            where="skip", fix="leave them out: `to: [{kind: nf4, skip: [...]}]`; or take another kind",
        )  # fmt: skip


def _rows(weight: Weight) -> int:
    return weight.shape[int(weight.turned)]


def _columns(weight: Weight) -> int:
    return weight.shape[1 - int(weight.turned)]


def bits(kind: str, config: Config, weight: Weight) -> float:
    """Bits on the disk for one value, with scales, their own scales, and what else is kept beside a tensor."""
    if not is_quantized(weight, config.skip):
        return kept_bits(weight)
    values = math.prod(weight.shape)
    if kind == "int8":
        return 8 + (32 * _rows(weight) + 8) / values  # scales, and one byte that names the format
    blocks = math.ceil(values / BLOCK)
    dtype = str(weight.model.get("dtype") or "bfloat16")
    state = {"quant_type": kind, "blocksize": BLOCK, "dtype": dtype, "shape": weight.shape}
    scales = 4 * blocks  # bytes
    if config.double_quant:
        state |= {"nested_blocksize": NESTED, "nested_dtype": "float32", "nested_offset": _OFFSET}
        scales = blocks + 4 * math.ceil(blocks / NESTED) + 4 * 256  # scales, their scales, their values
    table = 4 * 16  # the values that 4 bits stand for
    return 8 * (math.ceil(values / 2) + scales + table + len(json.dumps(state))) / values


def make(making: Making) -> None:
    """Loads the weights quantized, and saves them before anything has been computed with them.

    On a CPU the first pass forward packs 4-bit weights anew, and what is saved then is loaded as other numbers.

    Raises:
        UserError: 8 bits, and a weight is too large for the 16-bit floats that it is rounded by way of.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    config = making.config
    own = AutoConfig.from_pretrained(making.source, trust_remote_code=False)
    compute = own.dtype if own.dtype is not None else torch.float32
    skip = kept(config, own)[0]
    if making.kind == "int8":
        raise_all(UserError, list(too_large(making.source, weights_of(making.source), config.skip)))
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
