"""Trained keys and values before those of the text, in every layer: prefix tuning (arXiv 2101.00190)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from tunekit.model.adapters._shared.blocks import VirtualTokensBlock

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

PEFT = "prefix_tuning"
LEARNING_RATE = 1e-2


class Config(VirtualTokensBlock):
    """The `adapter:` block of kind prefix."""

    kind: Literal["prefix"]
    projection: bool = Field(False, description="make the prefix with a small network, as the paper does")
    hidden: int | None = Field(None, ge=1, description="width of that network; default: that of keys in a layer")
    init: Literal["default", "zero"] = Field("default", description="default: random; zero: values of zero")

    @model_validator(mode="after")
    def _fit_together(self) -> Config:
        if self.hidden is not None and not self.projection:
            raise ValueError("with projection: true where hidden is given, the width of that network")
        if self.init == "zero" and self.projection:
            raise ValueError("without init: zero where projection makes the prefix")
        return self


def peft_config(config: Config, model: PreTrainedModel, steps: int) -> PeftConfig:
    """PEFT's own configuration for this block."""
    from peft import PrefixTuningConfig, TaskType

    return PrefixTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=config.virtual_tokens,
        prefix_projection=config.projection,
        encoder_hidden_size=config.hidden,
        init_weights="zero" if config.init == "zero" else None,
    )
