"""What goes together: kinds of adapter, quantized weights, devices. One table, looked up before anything is loaded.

The table was measured (docs/adapters.md); `tests/model/test_adapter_matrix.py` measures it again.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any, NamedTuple

from tunekit.core.errors import Problem
from tunekit.core.registry import ADAPTERS, QUANTIZERS
from tunekit.plan.hardware import Hardware
from tunekit.recipe.adapters import GROUPS
from tunekit.recipe.schema import Recipe


class Allowed(NamedTuple):
    """What a kind of adapter can do.

    ``four`` and ``eight``: it trains on weights that bitsandbytes quantized to so many bits, begins with their output
    where it begins with the base's at all, and learns. ``merges``: it becomes part of full weights, within rounding.
    ``conv1d``: it has a form for GPT-2, whose linear layers are of another class.
    """

    four: bool
    eight: bool
    merges: bool
    conv1d: bool


_CAN = {
    "adalora": "four eight merges conv1d",
    "adamss": "merges",
    "beft": "four eight",
    "boft": "four eight merges",
    "bottleneck": "four eight conv1d",
    "c3a": "four eight merges",
    "cartridge": "four eight conv1d",
    "deft": "merges conv1d",
    "delora": "merges",
    "fourierft": "four eight merges conv1d",
    "freeze": "conv1d",
    "frod": "merges conv1d",
    "glora": "merges",
    "gralora": "four eight merges conv1d",
    "hira": "four eight merges conv1d",
    "hra": "merges",
    "ia3": "four eight merges conv1d",
    "layerwise": "",
    "llama_adapter": "four eight conv1d",
    "ln_tuning": "four eight merges conv1d",
    "loha": "eight merges",
    "lokr": "eight merges",
    "lora": "four eight merges conv1d",
    "miss": "four eight merges",
    "multitask_prompt": "four eight conv1d",
    "oft": "four eight merges",
    "osf": "merges",
    "p_tuning": "four eight conv1d",
    "peanut": "eight merges",
    "prefix": "four eight conv1d",
    "prompt": "four eight conv1d",
    "psoft": "merges",
    "pvera": "four eight merges conv1d",
    "randlora": "four eight merges conv1d",
    "road": "four eight merges",
    "shadow": "four eight conv1d",
    "shira": "four merges",
    "supertuning": "merges",
    "tinylora": "merges conv1d",
    "trainable_tokens": "four eight merges conv1d",
    "unilora": "merges conv1d",
    "vblora": "four merges conv1d",
    "vera": "four eight merges conv1d",
    "waveft": "four eight merges conv1d",
}
_TABLE = {kind: Allowed(*(name in can.split() for name in Allowed._fields)) for kind, can in _CAN.items()}
UNKNOWN = Allowed(four=False, eight=False, merges=False, conv1d=False)
"""Of a kind that a newer PEFT brought: it trains on full weights, and nothing is promised beyond."""


def allowed(kind: str) -> Allowed:
    """What a kind of adapter can do."""
    return _TABLE.get(kind, UNKNOWN)


def is_measured(kind: str) -> bool:
    """Whether a kind stands in the table."""
    return kind in _TABLE


def combination_problems(recipe: Recipe) -> list[Problem]:
    """What in a recipe does not go together, whatever the machine."""
    return [*_adapter(recipe), *_quantize(recipe)]


def missing_for(recipe: Recipe, hardware: Hardware) -> list[Problem]:
    """What adapter and quantization need of the machine and its packages, and do not find."""
    problems = []
    for registry, block, key in (
        (ADAPTERS, recipe.adapter_block, "adapter"),
        (QUANTIZERS, recipe.model.quantize, "model.quantize"),
    ):
        if block is None:
            continue
        plugin: Any = registry.load(block.kind)
        packages = plugin.packages(block) if hasattr(plugin, "packages") else getattr(plugin, "PACKAGES", {})
        for module, line in packages.items():
            if importlib.util.find_spec(module) is None:
                problems.append(Problem(f"{registry.kind} '{block.kind}' needs {module}", f"{key}.kind", line))
        devices = getattr(plugin, "DEVICES", (hardware.device,))
        if hardware.device not in devices:
            what = f"{registry.kind} '{block.kind}' runs on {' or '.join(devices)}, not on {hardware.device}"
            problems.append(Problem(what, f"{key}.kind", "take another kind"))
    return problems


def _adapter(recipe: Recipe) -> Iterator[Problem]:
    block = recipe.adapter_block
    if block is None:
        return
    reason = getattr(ADAPTERS.load(block.kind), "REFUSED", None)
    if reason:
        yield Problem(f"an adapter of kind {block.kind} cannot be trained here: {reason}", "adapter.kind")
    plugin = ADAPTERS.load(block.kind)
    if getattr(block, "plus", None) is not None and recipe.train.optimizer == "muon":
        fix = "leave one of them out"
        yield Problem("'adapter.plus' sets learning rates of groups, which muon makes itself", "adapter.plus", fix)
    if hasattr(plugin, "arguments") and recipe.train.optimizer != "adamw":
        what = f"an adapter of kind {block.kind} brings its own optimizer"
        yield Problem(what, "train.optimizer", "leave it out")
    if recipe.train.gradient_checkpointing and block.kind in ("prefix", "cartridge"):
        what = f"an adapter of kind {block.kind} and gradient checkpointing exclude each other"
        fix = "leave one of them out: the cached keys that it adds would be added twice"
        yield Problem(what, "train.gradient_checkpointing", fix)
    if block.kind == "shadow" and block.targets in GROUPS:
        what = "an adapter of kind shadow goes around whole decoder layers, not into linear ones"
        yield Problem(what, "adapter.targets", "name them: targets: '.*(layers|h)[.][0-9]+'")


def _quantize(recipe: Recipe) -> list[Problem]:
    quantize = recipe.model.quantize
    if quantize is None:
        return []
    if recipe.model.name.startswith("builtin:random") or "init=random" in recipe.model.name:
        what = "fresh weights are not quantized"
        return [Problem(what, "model.quantize", "name a model with weights on disk")]
    return quantized_problems(recipe, quantize.kind, QUANTIZERS.load(quantize.kind).bits(quantize))


def quantized_problems(recipe: Recipe, quantizer: str, bits: int) -> list[Problem]:
    """What does not go together with quantized weights: the recipe's wish, or how they lie on disk.

    Args:
        recipe: the checked recipe.
        quantizer: the kind of quantization.
        bits: of a weight.
    """
    adapter, full = recipe.adapter_block, f"weights of {bits} bits ({quantizer})"
    if adapter is None:
        what = f"{full} cannot be trained in full"
        return [Problem(what, "model.quantize", "add `adapter: {kind: lora}`, or take full weights")]
    if not _trains(adapter.kind, quantizer, bits):
        fits = [kind for kind in ADAPTERS.files if _trains(kind, quantizer, bits)]
        what = f"an adapter of kind {adapter.kind} does not train on {full}"
        return [Problem(what, "adapter.kind", f"kinds that do: {', '.join(fits)}")]
    return []


def _trains(kind: str, quantizer: str, bits: int) -> bool:
    if quantizer != "bnb":
        return kind == "lora"  # the one that PEFT has layers for, whatever the weights are quantized with
    return allowed(kind).four if bits == 4 else allowed(kind).eight
