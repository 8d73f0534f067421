"""Which modules an adapter changes: words for groups of them, names, and regular expressions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import UserError
from tunekit.core.registry import nearest
from tunekit.recipe.adapters import GROUPS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def resolve_targets(model: PreTrainedModel, wanted: str | Iterable[str]) -> list[str]:
    """The full names of the modules that ``targets`` means, sorted.

    Args:
        model: without an adapter.
        wanted: a group's word, a regular expression that whole names fit, or a list of names (or their last parts)
            and words.

    Raises:
        UserError: a name that no module has, or an expression that fits none; with the nearest name.
    """
    if isinstance(wanted, str) and wanted not in GROUPS:
        pattern = re.compile(wanted)
        fitting = [name for name, _ in model.named_modules() if name and pattern.fullmatch(name)]
        if not fitting:
            fix = "it must fit the whole name, such as `model.layers.0.self_attn.q_proj`"
            raise UserError(f"no module's name fits the expression '{wanted}'", where="adapter.targets", fix=fix)
        return sorted(fitting)
    found: set[str] = set()
    for word in [wanted] if isinstance(wanted, str) else wanted:
        named = _group(model, word) if word in GROUPS else _named(model, word)
        if not named:
            raise _unmatched(model, word, "adapter.targets")
        found.update(named)
    return sorted(found)


def check_names(model: PreTrainedModel, names: Iterable[str], where: str) -> None:
    """Refuses names that no module of the model has.

    Raises:
        UserError: with the nearest name.
    """
    for name in names:
        if not _named(model, name):
            raise _unmatched(model, name, where)


def linear_names(model: PreTrainedModel) -> list[str]:
    """Full names of the linear layers (also GPT-2's, and quantized ones), without the output head."""
    heads = (model.get_output_embeddings(), getattr(model, "score", None))
    return [name for name, module in model.named_modules() if _is_linear(module) and module not in heads]


def _is_linear(module: Any) -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear | Conv1D):
        return True
    # quantized layers of libraries that do not build on torch's own
    return hasattr(module, "in_features") and hasattr(module, "out_features") and not list(module.children())


def _group(model: PreTrainedModel, word: str) -> list[str]:
    attention = [f"{name}." for name, module in model.named_modules() if type(module).__name__.endswith("Attention")]
    found = []
    for name in linear_names(model):
        inside = any(name.startswith(parent) for parent in attention)
        if word == "all-linear" or inside == (word == "attention"):
            found.append(name)
    return found


def _named(model: PreTrainedModel, name: str) -> list[str]:
    return [full for full, _ in model.named_modules() if full == name or full.endswith(f".{name}")]


def _unmatched(model: PreTrainedModel, name: str, where: str) -> UserError:
    if name in GROUPS:
        return UserError(f"the model has no modules of '{name}'", where=where, fix="name them")
    known = {full.rsplit(".", 1)[-1] for full, _ in model.named_modules() if full}
    known = {short for short in known if not short.isdigit()}
    close = nearest(name.rsplit(".", 1)[-1], known)
    fix = f"did you mean '{close}'?" if close else f"known: {', '.join(sorted(known))}"
    return UserError(f"no module of the model is called '{name}'", where=where, fix=fix)
