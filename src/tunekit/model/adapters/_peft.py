"""Kinds of adapter that have no file here: their blocks are made from the fields of PEFT's own configurations."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any, Literal

from pydantic import Field, create_model

from tunekit.recipe.adapters import AdapterBlock, TargetedBlock, Targets
from tunekit.recipe.peft_fields import PeftField, has_field, peft_fields, peft_kinds

OURS = {
    "prefix_tuning": "prefix",
    "prompt_tuning": "prompt",
    "multitask_prompt_tuning": "multitask_prompt",
    "adaption_prompt": "llama_adapter",
}
"""PEFT's names of kinds whose file here has the name that is used in the field."""
REFUSED = {
    "lily": "its routing looks at all tokens of the batch, later ones too: a causal model would see its own answers",
    "xlora": "it mixes adapters that were trained before, and is not the same after it was loaded again",
    "cpt": "its loss weighs the kinds of the prompt's tokens, which a recipe has no words for",
    "poly": "its forward pass needs the task of every row, and rows have none here",
}
"""Kinds that build, but do not do what is wanted: measured, see docs/adapters.md."""
PACKAGES = {"adamss": {"sklearn": "pip install scikit-learn"}}

_TRAIN_BASE = ("shadow",)
"""Kinds with parameters in the base's own type: they need weights in float32."""
_FAST = ("adamss", "beft", "c3a", "cartridge", "frod", "hira", "pvera", "road", "supertuning", "unilora")
LEARNING_RATES = dict.fromkeys(_FAST, 2e-3)
"""Of kinds that learnt best at ten times LoRA's rate; the others take that of LoRA."""


_HELP = {
    "adamss": "AdaMSS: subspaces of a weight's singular vectors, grouped, the useful ones kept",
    "beft": "BEFT: biases alone, added where a layer has none (arXiv 2509.15974)",
    "c3a": "C3A: circular convolutions as updates, of full rank with few parameters (arXiv 2407.19342)",
    "cartridge": "Cartridges: trained keys and values before the text, such as stand for a long one",
    "deft": "DEFT: a low-rank part of the weight is taken away, and another put in its place",
    "delora": "DeLoRA: LoRA whose direction and strength are apart (arXiv 2503.18225)",
    "frod": "FRoD: rotations whose projections are shared by layers of one role",
    "glora": "GLoRA: scales and shifts of weights, inputs and biases (arXiv 2306.07967)",
    "gralora": "GraLoRA: a LoRA for each block of a weight",
    "hira": "HiRA: the weight times a low-rank matrix, element by element",
    "osf": "OSF: the directions that matter least to the base are trained, orthogonal to the others",
    "peanut": "PEANuT: the update is computed from the weight by a small network (arXiv 2410.01870)",
    "psoft": "PSOFT: an orthogonal change within the main subspace of a weight",
    "pvera": "PVeRA: VeRA whose scales are drawn from trained distributions (arXiv 2512.07703)",
    "road": "RoAd: rotations in two dimensions (arXiv 2409.00119)",
    "shadow": "Shadow: a small network of states beside the decoder layers",
    "supertuning": "Super-Tuning: few single weights, chosen by their size (arXiv 2607.09287)",
    "tinylora": "TinyLoRA: a tiny vector, projected into a weight's singular directions (arXiv 2602.04118)",
    "unilora": "Uni-LoRA: one vector, projected to all of LoRA's parameters (arXiv 2506.00799)",
    "vblora": "VB-LoRA: LoRA put together from a bank of shared vectors (arXiv 2405.15179)",
    "waveft": "WaveFT: sparse updates among the wavelets of a weight",
}
"""First lines of help, of kinds that have no file with one."""


def names() -> tuple[str, ...]:
    """PEFT's kinds, without those that have a name of ours."""
    return tuple(sorted(set(peft_kinds()) - set(OURS)))


def knows(name: str) -> bool:
    """Whether PEFT has such a kind, and it has no name of ours."""
    return name in names()


@cache
def load(name: str) -> ModuleType:
    """A plug-in such as a file of this folder would be: ``Config`` and ``peft_config``.

    Raises:
        KeyError: PEFT has no such kind.
    """
    kind = peft_kinds()[name]
    plugin = ModuleType(f"{__name__}.{name}", _HELP.get(name, f"PEFT's {kind.config_class.removesuffix('Config')}."))
    fields: dict[str, Any] = {each.name: _field(each) for each in peft_fields(name).values()}
    fields["kind"] = (Literal[name], Field(description="the kind"))
    if has_field(name, "target_modules"):
        fields["targets"] = (Targets, Field("all-linear", description="as in the other kinds"))
        fields["train_modules"] = (tuple[str, ...], Field((), description="further modules trained in full"))
    plugin.Config = create_model(f"{name.title()}Config", __base__=AdapterBlock, __module__=__name__, **fields)  # type: ignore[attr-defined]
    plugin.peft_config = _peft_config  # type: ignore[attr-defined]
    plugin.PACKAGES = PACKAGES.get(name, {})  # type: ignore[attr-defined]
    if name in LEARNING_RATES:
        plugin.LEARNING_RATE = LEARNING_RATES[name]  # type: ignore[attr-defined]
    plugin.TRAINS_BASE = name in _TRAIN_BASE  # type: ignore[attr-defined]
    if name in REFUSED:
        plugin.REFUSED = REFUSED[name]  # type: ignore[attr-defined]
    return plugin


def _field(field: PeftField) -> Any:
    return (field.type, Field(None, description=field.help or field.name.replace("_", " ")))


def _peft_config(config: Any, model: Any, steps: int) -> Any:
    """PEFT's configuration with what the recipe gives; everything else is PEFT's default."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    ours = {"kind", *AdapterBlock.model_fields, *TargetedBlock.model_fields}
    given = {name: value for name, value in config.model_dump(exclude=ours).items() if value is not None}
    return PEFT_TYPE_TO_CONFIG_MAPPING[config.kind.upper()](task_type="CAUSAL_LM", **given)
