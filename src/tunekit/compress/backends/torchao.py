"""torchao: 8-bit whole numbers or floats with one scale a row, or 4 bits on a GPU; no text needed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from tunekit.compress.backends._shared.given import common_problems, is_quantized, kept_bits
from tunekit.compress.contract import TRANSFORMERS, Making, Weight
from tunekit.core.errors import Problem, UserError, out_of_memory
from tunekit.model.quantizers._shared.wishes import kept
from tunekit.recipe.schema import Block

KINDS: Mapping[str, str] = {
    "ao_int8": "8 bits, weights alone, one scale a row (torchao)",
    "ao_int8_dynamic": "8-bit weights and inputs, scaled a token at a time (torchao)",
    "ao_int4": "4 bits, one scale and zero point a group (torchao)",
    "ao_float8": "8-bit floats (e4m3), weights alone, one scale a row (torchao)",
}
CALIBRATED: frozenset[str] = frozenset()
EXACT: frozenset[str] = frozenset()
PACKAGES: Mapping[str, str] = {"torchao": "pip install 'torchao>=0.18'"}
DEVICES: Mapping[str, tuple[str, ...]] = {"ao_int4": ("cuda",)}
RUNTIME = TRANSFORMERS
GROUP = 128
_NAMES = {
    "ao_int8": "Int8WeightOnlyConfig",
    "ao_int8_dynamic": "Int8DynamicActivationInt8WeightConfig",
    "ao_int4": "Int4WeightOnlyConfig",
    "ao_float8": "Float8WeightOnlyConfig",
}


class Config(Block):
    """Options of torchao."""

    group_size: int | None = Field(
        None, ge=32, le=256, description="ao_int4: weights of a row that share a scale: 32, 64, 128 (default) or 256"
    )
    skip: tuple[str, ...] = Field((), description="modules left as they are; the head always is")


def problems(kind: str, config: Config, model: Mapping[str, Any], weights: Sequence[Weight]) -> list[Problem]:
    """What stands against it: options of other kinds, groups that do not divide a layer, what 4 bits need."""
    own = frozenset({"group_size"}) if kind == "ao_int4" else frozenset[str]()
    found = list(common_problems(kind, config, model, weights, own=own, turned=False))
    if kind != "ao_int4":
        return found
    size = config.group_size or GROUP
    if size not in (32, 64, 128, 256):
        found.append(Problem(f"there are no groups of {size}", "to.group_size", "32, 64, 128 or 256"))
    odd = next((w for w in weights if is_quantized(w, config.skip) and w.shape[-1] % size), None)
    if odd is not None:
        what = f"groups must divide a row: of '{odd.name}' with {odd.shape[-1]} columns, {size} does not"
        found.append(Problem(what, "to.group_size", "name a smaller one, or skip the layer"))
    if any(is_quantized(weight, config.skip) and kept_bits(weight) != 16 for weight in weights):
        found.append(Problem("ao_int4 takes weights of bfloat16", "model", "make one first: --to bfloat16"))
    if importlib.util.find_spec("mslk") is None:
        found.append(Problem("ao_int4 needs the package mslk", "to", "pip install 'mslk>=1.0'"))
    return found


def bits(kind: str, config: Config, weight: Weight) -> float:
    """Bits on the disk for one value, with scales and zero points."""
    if not is_quantized(weight, config.skip):
        return kept_bits(weight)
    if kind == "ao_int4":
        return 4 + 2 * 16 / (config.group_size or GROUP)  # scale and zero point, of the type of the weights
    scale = 32 if kind == "ao_float8" else 32 + 8  # whole numbers keep a zero point, which is 0, of 8 bits
    return 8 + scale / weight.shape[-1]


def make(making: Making) -> None:
    """Quantizes while loading, and saves.

    Raises:
        UserError: torchao or transformers refuses the model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, TorchAoConfig

    config = making.config
    library = importlib.import_module("torchao.quantization")
    options = {"group_size": config.group_size or GROUP} if making.kind == "ao_int4" else {}
    left = kept(config, AutoConfig.from_pretrained(making.source, trust_remote_code=False))[0]
    quantization = TorchAoConfig(getattr(library, _NAMES[making.kind])(**options), modules_to_not_convert=left)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            making.source, dtype="auto", use_safetensors=True, trust_remote_code=False,
            quantization_config=quantization, device_map={"": "cuda" if torch.cuda.is_available() else "cpu"},
        )  # fmt: skip
        model.save_pretrained(making.target)
    except (ValueError, RuntimeError, TypeError, ImportError, NotImplementedError) as error:
        if out_of_memory(error):
            raise
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"torchao cannot make {making.kind} of this model: {cause[0][:300]}", where="model",
                        fix="take another kind: int8 or nf4") from error  # fmt: skip
