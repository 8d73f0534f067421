"""What the methods with rewards look at before anything is made."""

from __future__ import annotations

from pathlib import Path

from tunekit.recipe.schema import Recipe
from tunekit.rl.rewarding import Rewarder


def check_rollouts(recipe: Recipe, folder: Path) -> None:
    """Whether the recipe's rewards can be used, their files, functions and models; and what draws the answers.

    Args:
        recipe: its method draws answers.
        folder: where relative paths begin.

    Raises:
        UserError: all that is wrong.
        MachineError: a reward model's files are not as they were saved, or vLLM cannot be had here.
    """
    if recipe.options.engine == "vllm":
        from tunekit.rl import colocated

        colocated.check(recipe)
    Rewarder(recipe.options.reward, folder).check(f"{recipe.method}.reward")
