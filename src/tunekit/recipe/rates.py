"""The learning rate that suits a recipe which names none: by what is trained, and by the method."""

from __future__ import annotations

from tunekit.core.registry import ADAPTERS, METHODS
from tunekit.recipe.schema import Recipe, TrainBlock

FULL = 2e-5
"""All weights of a pretrained model."""
EMBEDDED = 2e-4
"""All weights of the embedded one: narrower models want larger steps (arXiv 2203.03466)."""
FRESH = 1e-3
"""All weights, where they begin as random numbers."""


def usual_rate(recipe: Recipe) -> float:
    """What suits the kind of adapter, or all weights, times what suits the method.

    A kind says it in ``LEARNING_RATE``; those that do not take LoRA's, the schema's default. A method says in
    ``RATE_SHARE`` which share of supervised fine-tuning's it wants: preferences and rewards move a model that can
    already answer.
    """
    share: float = getattr(METHODS.load(recipe.method), "RATE_SHARE", 1.0)
    adapter = recipe.adapter_block
    if adapter is not None:
        usual: float = getattr(
            ADAPTERS.load(adapter.kind), "LEARNING_RATE", TrainBlock.model_fields["learning_rate"].default
        )
        return share * usual
    name = recipe.model.name
    if name.startswith("builtin:random") or (name.startswith("builtin:") and "init=random" in name):
        return FRESH
    return share * (EMBEDDED if name.startswith("builtin:") else FULL)


def why_rate(recipe: Recipe) -> str:
    """Where the learning rate comes from, for whoever reads the plan; empty for one that is not the usual."""
    if recipe.train.learning_rate != usual_rate(recipe):
        return ""
    what = "all weights" if recipe.adapter_block is None else recipe.adapter_block.kind
    return f"usual for {recipe.method} of {what}"
