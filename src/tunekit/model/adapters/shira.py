"""A sparse, random choice of the weights: SHiRA (arXiv 2406.13175)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tunekit.core.errors import UserError
from tunekit.model.adapters._shared.structure import refuse_conv1d, target_widths
from tunekit.recipe.adapters import TargetedBlock

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

LEARNING_RATE = 5e-4


class Config(TargetedBlock):
    """The `adapter:` block of kind shira."""

    kind: Literal["shira"]
    r: int = Field(32, ge=1, le=4096, description="as many weights are trained as LoRA of this rank has")
    mask_seed: int = Field(0, ge=0, le=2**32 - 1, description="of the choice of weights")


def peft_config(config: Config, model: PreTrainedModel, steps: int) -> PeftConfig:
    """PEFT's own configuration for this block.

    Raises:
        UserError: the model's linear layers are of GPT-2's class, or too small for r.
    """
    from peft import ShiraConfig, TaskType

    refuse_conv1d(model, "shira", config.targets)
    _fits(config, model)
    return ShiraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.r,
        random_seed=config.mask_seed,
    )


def _fits(config: Config, model: PreTrainedModel) -> None:
    for name, taken, given in target_widths(model, config.targets):
        if config.r * (taken + given) > taken * given:
            raise UserError(
                f"r = {config.r} is more than '{name}' has: r * ({taken} + {given}) weights of {taken} * {given}",
                where="adapter.r",
                fix=f"at most {taken * given // (taken + given)}",
            )
