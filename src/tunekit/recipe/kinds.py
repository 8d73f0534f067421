"""The Recipe class that fits a recipe: the shared blocks, and those of the plug-ins that it names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any

from pydantic import Field, create_model

from tunekit.core.errors import Problem
from tunekit.core.registry import ADAPTERS, METHODS, QUANTIZERS, Registry, did_you_mean
from tunekit.core.types import Material
from tunekit.recipe.document import Document
from tunekit.recipe.schema import ModelBlock, Recipe


@dataclass(frozen=True)
class Kinds:
    """The kinds of plug-in blocks in a recipe; None where it has no such block."""

    adapter: str | None = None
    quantize: str | None = None

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Kinds:
        """Those of a recipe as plain values; a kind that does not exist counts as none."""
        model = value.get("model")
        found = (value.get("adapter"), model.get("quantize") if isinstance(model, Mapping) else None)
        named = [block.get("kind") if isinstance(block, Mapping) else None for block in found]
        known = [kind if kind in registry.names else None for kind, registry in zip(named, _KINDS, strict=True)]
        return cls(*known)


_KINDS = (ADAPTERS, QUANTIZERS)


def material_of(what: str | Recipe) -> Material:
    """What a recipe's method learns from, or a method by its name: by the defaults, where it depends on its options."""
    plugin = METHODS.load(what if isinstance(what, str) else what.method)
    material: Material = getattr(plugin, "MATERIAL", "texts")
    if not isinstance(what, str) and hasattr(plugin, "material"):
        material = plugin.material(what.options)
    return material


@cache
def recipe_type(method: str, kinds: Kinds | None = None) -> type[Recipe]:
    """The Recipe class of one method: the shared blocks, and the method's own.

    Args:
        method: its name.
        kinds: the kinds of adapter and quantization that the recipe has; None allows all, which takes longer.

    Raises:
        UserError: there is no such method.
    """
    plugin = METHODS.load(method)
    adapter = _block_of(ADAPTERS, kinds.adapter if kinds else "")
    quantize = _block_of(QUANTIZERS, kinds.quantize if kinds else "")
    quantized: Any = (quantize, Field(None, description=ModelBlock.model_fields["quantize"].description))
    model = create_model(
        "ModelBlock", __base__=ModelBlock, __module__=__name__, __doc__=ModelBlock.__doc__, quantize=quantized
    )
    blocks: dict[str, Any] = {
        "model": (model, Field(default_factory=model, description=Recipe.model_fields["model"].description)),
        method: (plugin.Config, _own_field(plugin.Config, METHODS.help(method))),
        "adapter": (adapter, Field(None, description="leave out for full fine-tuning")),
    }
    return create_model(f"{method.title()}Recipe", __base__=Recipe, __module__=__name__, **blocks)


def _own_field(block: Any, described: str) -> Any:
    """The field of a method's own block, which may be left out where all of its keys may."""
    if any(field.is_required() for field in block.model_fields.values()):
        return Field(description=described)
    return Field(default_factory=block, description=described)


def _block_of(registry: Registry, kind: str | None) -> Any:
    """The type of a plug-in's block, or None; an empty ``kind`` is any of them."""
    if kind is None:
        return None
    if kind:
        return registry.load(kind).Config | None
    union = reduce(or_, [registry.load(name).Config for name in registry.names])
    return Annotated[union, Field(discriminator="kind")] | None


def unknown_kinds(document: Document, value: dict[str, Any]) -> list[Problem]:
    """Blocks without a kind, or of one that there is not; they are taken out of ``value``."""
    problems = []
    for path, registry in ((("adapter",), ADAPTERS), (("model", "quantize"), QUANTIZERS)):
        holder: Any = value if len(path) == 1 else value.get(path[0])
        block = holder.get(path[-1]) if isinstance(holder, Mapping) else None
        if block is None:
            continue
        kind = block.get("kind") if isinstance(block, Mapping) else None
        if isinstance(block, Mapping) and kind in registry.names:
            continue
        place, dotted = document.place(path, of_value=True), ".".join(path)
        if isinstance(kind, str):
            place = document.place((*path, "kind"), of_value=True)
            problems.append(Problem(f"unknown {registry.kind} '{kind}'", place, did_you_mean(kind, registry.names)))
        else:
            what = f"'{dotted}' must be a block with a `kind`; it is {json.dumps(block, ensure_ascii=False)}"
            problems.append(Problem(what, place, f"for example `{dotted}: {{kind: {registry.files[0]}}}`"))
        rest = {name: inner for name, inner in holder.items() if name != path[-1]}
        if len(path) == 1:
            del value[path[0]]
        else:
            value[path[0]] = rest
    return problems
