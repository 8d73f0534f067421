"""Another model as the reference: it is loaded for one pass over the data, and is gone before training begins."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tunekit.core.errors import UserError
from tunekit.model.names import resolve_name
from tunekit.recipe.schema import Recipe

if TYPE_CHECKING:
    from tunekit.rl.groups import GroupTrainer

OWN = ("initial", "base")
"""References that are the policy's own."""


def check_reference(recipe: Recipe, folder: Path) -> None:
    """Whether the recipe's reference is there; nothing is loaded.

    Raises:
        UserError: there is no such model.
    """
    name = recipe.options.reference
    if name not in OWN:
        try:
            kind = resolve_name(_place(name)).kind
            if kind == "hub" and Path(name).parent.is_dir() and "/" in name:
                raise UserError(f"there is no folder '{name}'", fix="name a whole model: a Hub id, a folder or a run")
            if kind == "local" and not (Path(_place(name)) / "config.json").is_file():
                raise UserError(f"'{name}' holds no whole model", fix="an adapter is merged first: `tunekit merge`")
        except UserError as error:
            found = error.problems[0]
            raise UserError(found.what, where=f"{recipe.method}.reference", fix=found.fix) from error


def _place(name: str) -> str:
    """The model's folder of a run; any other name as it is."""
    inner = Path(name) / "model"
    return str(inner) if (inner / "config.json").is_file() else name


@contextmanager
def other_trainer(trainer: GroupTrainer, name: str) -> Iterator[GroupTrainer]:
    """A trainer around another model, which lays out rows and computes as ``trainer`` does; for a pass over its data.

    Raises:
        UserError: there is no such model, or its tokenizer is another one.
    """
    import numpy as np
    import torch

    from tunekit.model.load import load_model
    from tunekit.model.tokenizer import load_tokenizer
    from tunekit.rl.groups import GroupCollator, GroupTrainer
    from tunekit.rl.vocabulary import check_same_vocabulary
    from tunekit.train.causal import causal_trainer

    recipe, name = trainer.plan.recipe, _place(name)
    block = recipe.model.model_copy(update={"name": name, "revision": None, "tokenizer": None, "new_tokens": ()})
    others = recipe.model_copy(update={"model": block, "adapter": None})
    plan = trainer.plan.model_copy(update={"recipe": others})
    tokenizer = trainer.processing_class
    check_same_vocabulary(tokenizer, load_tokenizer(block))
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    model = load_model(plan).model  # it sets seeds
    staging = Path(str(trainer.args.output_dir))
    made = causal_trainer(
        plan, model, tokenizer, trainer.train_dataset, None, staging, kind=GroupTrainer, collator=GroupCollator
    )
    assert isinstance(made, GroupTrainer)
    made.plan, made.ranks, made.pulse, made.where = plan, trainer.ranks, trainer.pulse, trainer.where
    made.tail_weight = trainer.tail_weight
    torch.set_rng_state(before[0])
    random.setstate(before[1])
    np.random.set_state(before[2])
    try:
        yield made
    finally:
        del made, model
        gc.collect()
