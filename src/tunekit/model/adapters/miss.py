"""Shards of the input that share one trained matrix: MiSS (arXiv 2409.15371)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from tunekit.core.errors import UserError
from tunekit.model.adapters._shared.structure import refuse_conv1d, target_widths
from tunekit.recipe.adapters import TargetedBlock

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

LEARNING_RATE = 2e-4


class Config(TargetedBlock):
    """The `adapter:` block of kind miss."""

    kind: Literal["miss"]
    r: int = Field(64, ge=1, le=4096, description="number of trained rows, which the shards share")
    mini_r: int | None = Field(None, ge=1, description="so many trained columns, which are repeated over the output")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the adapter's input")
    init: Literal["default", "bat", "mini"] = Field(
        "default", description="bat: an update that depends on the weights; mini: fewer parameters, see mini_r"
    )

    @model_validator(mode="after")
    def _mini(self) -> Config:
        if (self.init == "mini") != (self.mini_r is not None):
            raise ValueError("with both of init: mini and mini_r, or with neither")
        return self


def peft_config(config: Config, model: PreTrainedModel, steps: int) -> PeftConfig:
    """PEFT's own configuration for this block.

    Raises:
        UserError: the model's linear layers are of GPT-2's class, or r does not fit them.
    """
    from peft import MissConfig, TaskType

    refuse_conv1d(model, "miss", config.targets)
    _fits(config, model)
    return MissConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.r,
        mini_r=config.mini_r or 1,
        miss_dropout=config.dropout,
        init_weights=True if config.init == "default" else config.init,
    )


def _fits(config: Config, model: PreTrainedModel) -> None:
    for name, taken, given in target_widths(model, config.targets):
        if config.init == "bat" and (taken % config.r or given % config.r):
            what = f"init: bat needs an r that divides input and output of '{name}': {taken} and {given}"
            raise UserError(what, where="adapter.r", fix="take a number that divides both")
        if config.r > taken:
            raise UserError(f"r is {config.r}, and '{name}' has only {taken} inputs", where="adapter.r")
        if config.mini_r is not None and given % config.mini_r:
            what = f"init: mini needs a mini_r that divides the output of '{name}': {given}"
            raise UserError(what, where="adapter.mini_r", fix="take a number that divides it")
