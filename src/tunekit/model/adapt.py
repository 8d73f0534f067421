"""Putting an adapter on a model: the same way for every kind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import UserError, first_line, out_of_memory
from tunekit.core.registry import ADAPTERS
from tunekit.model.artefact import check_base, verify
from tunekit.model.new_tokens import train_with
from tunekit.model.targets import check_names, resolve_targets
from tunekit.model.tokenizer import load_tokenizer
from tunekit.plan.plan import Plan
from tunekit.recipe.schema import ModelBlock

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_OWN = "state of the kind: "


def with_adapter(
    model: PreTrainedModel, plan: Plan, steps: int, new_tokens: Mapping[str, list[int]] | None = None
) -> PreTrainedModel:
    """The model with the recipe's adapter on it.

    Args:
        model: as loaded; it is changed.
        plan: the resolved plan, whose recipe has an adapter.
        steps: optimizer steps of the run.
        new_tokens: of `new_tokens.make_room`: rows of the embeddings that are trained as well.

    Raises:
        UserError: targets that match nothing, a model or values that the kind does not take, or nothing to train.
    """
    block = plan.recipe.adapter_block
    kind = ADAPTERS.load(block.kind)
    check_names(model, getattr(block, "train_modules", ()), "adapter.train_modules")
    if hasattr(kind, "apply"):
        adapted = kind.apply(block, model)
        if not all(adapted.get_submodule(name).weight.requires_grad for name in new_tokens or {}):
            raise UserError(
                f"kind {block.kind} does not train the new tokens",
                where="model.new_tokens",
                fix="name the embedding and the head among the modules that it trains",
            )
    else:
        adapted = _with_peft(model, kind, block, plan, steps, new_tokens or {})
    if not any(parameter.requires_grad for parameter in adapted.parameters()):
        raise UserError(f"an adapter of kind {block.kind} has nothing to train in this model", where="adapter")
    if block.start is not None:
        start_from(adapted, start_folder(block.start, Path(plan.recipe_folder)), plan.recipe.model)
    return adapted  # type: ignore[no-any-return]


def _with_peft(
    model: PreTrainedModel, kind: Any, block: Any, plan: Plan, steps: int, new_tokens: Mapping[str, list[int]]
) -> Any:
    from peft import get_peft_model

    if hasattr(kind, "tokenize"):
        block = kind.tokenize(block, load_tokenizer(plan.recipe.model))
    with _refusals(block.kind):
        config = kind.peft_config(block, model, steps)
        if getattr(block, "extra", {}):
            config = dataclasses.replace(config, **block.extra)  # made anew, so that PEFT checks them
    if getattr(block, "targets", None) is not None and "target_modules" in type(config).__dataclass_fields__:
        config.target_modules = resolve_targets(model, block.targets)
    if getattr(block, "train_modules", ()):
        config.modules_to_save = list(block.train_modules)
    if hasattr(model, "score"):  # a fresh head is trained whole
        config.task_type = "SEQ_CLS"
        config.modules_to_save = [*(config.modules_to_save or ()), "score"]
    if new_tokens:
        train_with(config, dict(new_tokens), block.kind)
    with _refusals(block.kind):
        adapted = get_peft_model(model, config)
    make_ready(adapted)
    for adapter in adapted.peft_config.values():
        adapter.base_model_name_or_path = plan.recipe.model.name  # not the place where this machine keeps it
        adapter.revision = plan.recipe.model.revision
    return adapted


@contextmanager
def _refusals(kind: str) -> Iterator[None]:
    """Turns into words what PEFT raises for a model, or for values, that a kind does not take.

    Its layers have no error of their own: shapes that do not fit come as RuntimeError, as memory that is short does.
    """
    try:
        yield
    except (ValueError, TypeError, NotImplementedError, RuntimeError, ImportError) as error:
        if out_of_memory(error):
            raise
        what = f"an adapter of kind {kind} does not fit the model: {str(error).strip() or type(error).__name__}"
        raise UserError(what, where="adapter", fix="change its keys, or take another kind") from error


def make_ready(model: Any) -> None:
    """Sees to what a kind's forward pass needs beside the weights; also for an adapter that was loaded."""
    name = str(getattr(model.active_peft_config.peft_type, "value", model.active_peft_config.peft_type)).lower()
    for kind in ADAPTERS.files:
        plugin = ADAPTERS.load(kind)
        if getattr(plugin, "PEFT", kind) == name and hasattr(plugin, "prepare"):
            plugin.prepare(model)


def start_folder(start: str, recipe_folder: Path) -> Path:
    """The folder of the adapter from which training goes on.

    Args:
        start: the recipe's ``adapter.start``: an adapter's folder, or a run's, whose ``model/`` it then means.
        recipe_folder: where a relative path is looked for first; then in the working folder, as data is.

    Raises:
        UserError: neither place holds an adapter.
    """
    path = Path(start).expanduser()
    places = dict.fromkeys((recipe_folder / path, path))
    for folder in [found for place in places for found in (place, place / "model")]:
        if (folder / WEIGHTS).is_file():
            return folder
    looked = " and ".join(f"'{place}'" for place in places)
    raise UserError(
        f"{looked} hold{'s' if len(places) == 1 else ''} no adapter ({WEIGHTS})",
        where="adapter.start",
        fix="name the folder of a run with an adapter, or of the adapter itself",
    )


def start_from(model: Any, folder: Path, base: ModelBlock) -> None:
    """Gives an adapter the values of one that was trained before.

    Args:
        model: with its adapter.
        folder: of the other one; see `start_folder`.
        base: the recipe's model block; the other adapter must belong on the same weights, where its manifest says so.

    Raises:
        UserError: the folder holds an adapter of other kind, places, shape, scale or base.
        MachineError: its files are not as they were written.
    """
    import torch
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    where = "adapter.start"
    if model.active_peft_config.is_prompt_learning:
        raise UserError("vectors before the text cannot be started from others", where=where, fix="leave it out")
    manifest = verify(folder)
    if manifest is not None:
        check_base(manifest["base"], base)
    _same_scale(model.active_peft_config, folder)
    values = load_file(folder / WEIGHTS)
    if not all(torch.isfinite(value).all() for value in values.values()):
        raise UserError("the adapter has values that are not finite", where=where, fix="take another checkpoint")
    try:
        result = set_peft_model_state_dict(model, values)
    except (RuntimeError, KeyError, ValueError) as error:
        raise UserError(f"the adapter is not of this kind and shape: {first_line(error)}", where=where) from error
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    lacking = sorted(trained & set(result.missing_keys))
    if lacking or result.unexpected_keys:
        name = (lacking or result.unexpected_keys)[0]
        raise UserError(f"the adapter is not of this kind and shape: '{name}' does not fit", where=where)


def _same_scale(config: Any, folder: Path) -> None:
    """The same tensors mean another adapter where kind, rank, scale or form are others."""
    other = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for name, value in config.to_dict().items():
        passing = any(word in name for word in ("dropout", "init", "seed", "inference"))
        if passing or not isinstance(value, bool | int | float | str) or name not in other:
            continue
        kind = getattr(value, "value", value)
        if other[name] != kind and name not in ("base_model_name_or_path", "revision", "task_type", "peft_version"):
            raise UserError(
                f"the adapter is not of this kind and shape: its {name} is {other[name]}, the recipe's {kind}",
                where="adapter.start",
                fix="take the other's values",
            )


def trained_state(model: Any, kind: Any = None) -> dict[str, Any]:
    """Everything that training changes, by name: CPU tensors. A checkpoint goes on from it, whatever the kind saves.

    Args:
        model: with its adapter.
        kind: the adapter's plug-in; some keep a state of their own beside the weights.
    """
    own = kind.state(model) if hasattr(kind, "state") else {}
    values = {_OWN + name: value for name, value in own.items()}
    values |= {name: value for name, value in model.named_parameters() if value.requires_grad}
    return {name: value.detach().to("cpu").contiguous() for name, value in values.items()}


def restore_trained(model: Any, values: dict[str, Any], kind: Any = None) -> None:
    """Takes back what `trained_state` gave.

    Raises:
        UserError: the names or shapes are not the model's.
    """
    import torch

    if hasattr(kind, "restore"):
        kind.restore(model, {name.removeprefix(_OWN): v for name, v in values.items() if name.startswith(_OWN)})
    values = {name: value for name, value in values.items() if not name.startswith(_OWN)}
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    other = sorted(own.keys() ^ values.keys())
    other += [name for name in own.keys() & values.keys() if own[name].shape != values[name].shape]
    if other:
        raise UserError(f"the checkpoint's weights are not those of this model: '{other[0]}' differs", where="adapter")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(values[name])
