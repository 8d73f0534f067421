"""Options that a recipe sets and that nothing would go by: they are refused, not passed over."""

from __future__ import annotations

from collections.abc import Mapping

from tunekit.core.errors import Problem, UserError, raise_all
from tunekit.recipe.schema import Recipe
from tunekit.rl.blocks import RolloutBlock


def refuse_unused(recipe: Recipe, unused: Mapping[str, str]) -> None:
    """Refuses keys that the recipe sets in its method's block; a default may stand there unused.

    Args:
        recipe: as the user wrote it: in one that comes from a plan every key is set.
        unused: keys, each with what it means nothing to.

    Raises:
        UserError: the recipe sets some of them.
    """
    given = recipe.options.model_fields_set
    problems = [
        Problem(f"{key} means nothing to {what}", f"{recipe.method}.{key}", f"leave {key} out")
        for key, what in unused.items()
        if key in given
    ]
    raise_all(UserError, problems)


def unused_in(block: RolloutBlock) -> dict[str, str]:
    """What a method that draws answers does not go by, with its other options as they are."""
    found: dict[str, str] = {}
    if not block.beta:
        found |= dict.fromkeys(("kl", "reference"), "a policy without a price of the KL: beta is 0")
    if block.passes * block.rollout_steps == 1:
        found["target_kl"] = "answers that one step alone learns from: passes and rollout_steps are 1"
    if block.engine == "vllm":
        found["rollout_batch_size"] = "vLLM, which batches by itself"
    else:
        found["vllm_memory"] = "the engine transformers"
    return found
