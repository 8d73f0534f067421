"""Another model as the reference: it is loaded for one pass over the data, and is gone before training begins."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import TunekitError, UserError, raise_all
from tunekit.model.names import near, resolve_name
from tunekit.model.restore import Artefact
from tunekit.recipe.schema import ModelBlock, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunekit.plan.plan import Plan
    from tunekit.rl.groups import GroupTrainer

OWN = ("initial", "base")
"""References that are the policy's own."""


def check_reference(recipe: Recipe, folder: Path) -> None:
    """Whether the recipe's reference is there; no weights are loaded.

    Args:
        recipe: its method has a reference.
        folder: where a relative path is looked for first; then in the working folder, as data is.

    Raises:
        UserError: there is no such model.
        MachineError: its files are not as they were saved.
    """
    if recipe.options.reference not in OWN:
        with _placed(recipe):
            find(recipe.options.reference, folder)


def find(name: str, folder: Path) -> Artefact:
    """The reference of this name: a run's, an adapter's or a model's folder; else a base alone, by its name.

    Raises:
        UserError: there is no such model, or the run has none yet.
        MachineError: files that are missing or not as they were saved.
    """
    from tunekit.model import restore

    path = Path(name).expanduser()
    if not name.startswith("builtin:"):
        for place in dict.fromkeys((folder / path, path)):
            if place.is_dir():
                found = restore.find(place)
                return found if found.adapter else replace(found, base=ModelBlock(name=str(found.folder)))
    if resolve_name(name).kind == "hub" and "/" in name and path.parent.is_dir():
        raise UserError(f"there is no folder '{name}'", fix=near(path) or "name a Hub id, a folder or a run")
    return Artefact(Path(), None, None, ModelBlock(name=name))


@contextmanager
def other_trainer(trainer: GroupTrainer, name: str) -> Iterator[GroupTrainer]:
    """A trainer around another model, which lays out rows and computes as ``trainer`` does; for a pass over its data.

    Raises:
        UserError: there is no such model, or its tokenizer is another one.
    """
    import numpy as np
    import torch

    from tunekit.model.kbit import is_quantized
    from tunekit.rl.groups import GroupCollator, GroupTrainer
    from tunekit.rl.vocabulary import check_same_vocabulary
    from tunekit.train.causal import counts_by_mask, look_at

    plan = trainer.plan
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    with _placed(plan.recipe):
        found = find(name, Path(plan.recipe_folder))
        check_same_vocabulary(trainer.processing_class, _tokenizer(found))  # type: ignore[arg-type]
        model = _loaded(found, plan)  # it sets seeds
    if not is_quantized(model):  # those lie where they were quantized
        model = model.to(trainer.accelerator.device)
    made = GroupTrainer.__new__(GroupTrainer)  # Trainer's own beginning refuses quantized weights that nothing trains
    made.__dict__.update(vars(trainer))
    made.model = made.model_wrapped = model
    made.data_collator = GroupCollator(trainer.processing_class.pad_token_id, with_mask=counts_by_mask(model))
    look_at(made, plan)
    torch.set_rng_state(before[0])
    random.setstate(before[1])
    np.random.set_state(before[2])
    try:
        yield made
    finally:
        del made, model
        gc.collect()


def _tokenizer(found: Artefact) -> PreTrainedTokenizerBase:
    from tunekit.model import restore
    from tunekit.model.tokenizer import hub_errors, load_tokenizer

    assert found.base is not None, found
    if found.adapter is None:
        return load_tokenizer(found.base)
    with hub_errors(resolve_name(found.base.name)):
        return restore.load_tokenizer(found)


def _loaded(found: Artefact, plan: Plan) -> Any:
    """The model, frozen and in evaluation mode; its base is quantized as the recipe quantizes the policy's."""
    import torch

    from tunekit.model import kbit, restore
    from tunekit.model.load import load_model
    from tunekit.model.quiet import hushed
    from tunekit.model.tokenizer import load_config

    assert found.base is not None, found
    block, base = plan.recipe.model, found.base
    if found.adapter is None:
        update = {"name": base.name, "revision": None, "tokenizer": None, "new_tokens": ()}
        others = {"model": block.model_copy(update=update), "adapter": None}
        model: Any = load_model(plan.model_copy(update={"recipe": plan.recipe.model_copy(update=others)})).model
    else:
        options: dict[str, Any] = {} if block.attention == "auto" else {"attn_implementation": block.attention}
        if not resolve_name(base.name).random:
            compute = getattr(torch, plan.arithmetic)
            options |= kbit.load_options(block.quantize, compute, plan.hardware.device, load_config(base))
        with hushed():
            model = restore.attach(restore.load_base(found, dtype=plan.weights_dtype, options=options), found)
    return model.eval().requires_grad_(False)


@contextmanager
def _placed(recipe: Recipe) -> Iterator[None]:
    """What is wrong with a model is told at the reference's key: those who find it think of the recipe's own model."""
    try:
        yield
    except TunekitError as error:
        key, told = f"{recipe.method}.reference", ("", "model.name", "model.tokenizer")
        raise_all(
            type(error), [replace(each, where=key if each.where in told else each.where) for each in error.problems]
        )
        raise
