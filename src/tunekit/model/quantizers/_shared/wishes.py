"""What a recipe asks of quantized weights, against what lies on disk and what this machine has."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tunekit.core.errors import Problem
from tunekit.core.registry import QUANTIZERS, did_you_mean

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_WHERE = "model.quantize"


@dataclass(frozen=True)
class Stored:
    """How weights are quantized: the kind (or transformers' own word for one that tunekit has not), and its keys."""

    kind: str
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """Such as `bnb 4-bit`."""
        bits = self.facts.get("bits")
        return f"{self.kind} {bits}-bit" if bits else f"{self.kind} {self.facts.get('type', '')}".strip()


def stored_as(config: PretrainedConfig) -> Stored | None:
    """How the weights that a configuration belongs to are quantized; None where they are not."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    facts: Mapping[str, Any] = found if isinstance(found, Mapping) else found.to_dict()
    method = facts.get("quant_method", "bitsandbytes")  # the oldest files of bitsandbytes do not say
    method = str(getattr(method, "value", method))
    for kind in QUANTIZERS.names:
        plugin = QUANTIZERS.load(kind)
        if method == plugin.METHOD:
            return Stored(kind, plugin.stored(facts))
    return Stored(method, {})


def missing_packages(kind: str) -> list[Problem]:
    """The packages that a kind needs and that are not installed, each with the line that installs it."""
    return [
        Problem(f"weights of the kind '{kind}' need the package {module}", where=_WHERE, fix=line)
        for module, line in QUANTIZERS.load(kind).PACKAGES.items()
        if importlib.util.find_spec(module) is None
    ]


def problems(block: Any, config: PretrainedConfig, device: str) -> list[Problem]:
    """What is wrong with the wish for quantized weights, before anything is loaded.

    Args:
        block: `model.quantize`, or None.
        config: the model's configuration as it lies on disk.
        device: ``cpu`` or ``cuda``.
    """
    stored = stored_as(config)
    if stored is not None:
        found = _against_disk(block, stored)
    elif block is not None:
        found = _from_full(QUANTIZERS.load(block.kind), block, config)
    else:
        return []
    if block is not None and device not in QUANTIZERS.load(block.kind).DEVICES:
        found.append(Problem(f"the kind '{block.kind}' does not run on {device}", where=_WHERE, fix="kind: bnb does"))
    return found


def _from_full(plugin: ModuleType, block: Any, config: PretrainedConfig) -> list[Problem]:
    from transformers import __version__
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
    from transformers.quantizers.base import HfQuantizer

    if not plugin.FROM_FULL:
        what = f"the kind '{block.kind}' loads weights that are quantized already; these are not"
        return [Problem(what, where=_WHERE, fix="name weights quantized so, or take kind: bnb")]
    quantizer = AUTO_QUANTIZER_MAPPING.get(plugin.METHOD)  # bitsandbytes has two, of which both can
    if quantizer is not None and quantizer.get_quantize_ops is HfQuantizer.get_quantize_ops:
        what = f"transformers {__version__} cannot quantize to the kind '{block.kind}'"
        return [Problem(what, where=_WHERE, fix="kind: bnb, or another version of transformers")]
    return kept(block, config)[1]


def _against_disk(block: Any, stored: Stored) -> list[Problem]:
    as_they_are = "leave model.quantize out, or name weights of full precision"
    if stored.kind not in QUANTIZERS.names:
        fix = f"name weights of full precision, or quantized as one of {', '.join(QUANTIZERS.names)}"
        return [Problem(f"weights quantized as '{stored.kind}' cannot be trained on", where="model.name", fix=fix)]
    kind = QUANTIZERS.load(stored.kind).Config
    theirs = {key: value for key, value in stored.facts.items() if key in kind.model_fields and value is not None}
    try:
        kind(kind=stored.kind, **theirs)
    except ValidationError:
        told = ", ".join(f"{key} {value}" for key, value in theirs.items())
        what = f"weights quantized as {stored.kind} with {told} cannot be trained on"
        return [Problem(what, where="model.name", fix="name weights of full precision")]
    if block is None:
        return []
    if block.kind != stored.kind:
        what = f"the weights are quantized already ({stored.name}); model.quantize asks for '{block.kind}'"
        return [Problem(what, where=_WHERE, fix=as_they_are)]
    found = []
    for key, value in theirs.items():
        wanted = getattr(block, key)
        if wanted is not None and wanted != value:
            what = f"the weights are quantized already, with {key} {value}; the recipe has {wanted}"
            found.append(Problem(what, where=f"{_WHERE}.{key}", fix=as_they_are))
    if getattr(block, "skip", ()):
        what = "the weights are quantized already; what was skipped is settled"
        found.append(Problem(what, where=f"{_WHERE}.skip", fix=as_they_are))
    return found


def kept(block: Any, config: PretrainedConfig) -> tuple[list[str] | None, list[Problem]]:
    """Full names of the modules left as they are: the recipe's, and those that transformers leaves itself (the head).

    transformers takes a name of its own list for an expression or the end of a name, and quantizes the head once it is
    given a list; so it is given full names, the head among them. None: its own list alone.
    """
    names = getattr(block, "skip", ())
    if not names:
        return None, []
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    linear = [n for n, module in skeleton.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    left, found = set(get_keys_to_not_convert(skeleton)), []
    for name in names:
        inside = {full for full in linear if f".{name}." in f".{full}."}
        left |= inside
        if not inside:
            fix = did_you_mean(name, {part for full in linear for part in full.split(".") if not part.isdigit()})
            found.append(Problem(f"no linear layer is called '{name}' or lies in it", where=f"{_WHERE}.skip", fix=fix))
    return sorted(left), found
