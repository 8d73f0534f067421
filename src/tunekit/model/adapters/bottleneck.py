"""Small networks within each layer: Houlsby, Pfeiffer, parallel (arXiv 1902.00751, 2005.00247, 2110.04366)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tunekit.model.bottleneck import Nonlinearity, Style, register
from tunekit.recipe.adapters import AdapterBlock

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunekit.model.bottleneck.config import BottleneckConfig

LEARNING_RATE = 1e-3


class Config(AdapterBlock):
    """The `adapter:` block of kind bottleneck."""

    kind: Literal["bottleneck"]
    style: Style = Field(
        "pfeiffer",
        description="pfeiffer: after each MLP; houlsby: after each attention and MLP; parallel: beside each MLP",
    )
    size: int = Field(64, ge=1, le=65_536, description="width of the bottleneck")
    nonlinearity: Nonlinearity = Field("relu", description="between the projection down and the projection up")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the bottleneck")
    scale: Annotated[float, Field(gt=0, le=1000)] | Literal["learned"] = Field(
        1.0, description="factor of the adapter's output; learned: a parameter of each adapter that begins at 1"
    )
    train_modules: tuple[str, ...] = Field((), description="further modules trained in full and saved with the adapter")


def peft_config(config: Config, model: PreTrainedModel, steps: int = 0) -> BottleneckConfig:
    """The configuration for this block, of a kind that PEFT knows from now on.

    Args:
        config: the block.
        model: without an adapter.
        steps: optimizer steps of the run; nothing depends on them.

    Raises:
        UserError: the model has no place for adapters of this style.
    """
    from peft import TaskType

    from tunekit.model.bottleneck.config import BottleneckConfig
    from tunekit.model.bottleneck.places import find_places

    register()
    return BottleneckConfig(
        task_type=TaskType.CAUSAL_LM,
        style=config.style,
        size=config.size,
        nonlinearity=config.nonlinearity,
        dropout=config.dropout,
        scale=config.scale,
        modules_to_save=list(config.train_modules) or None,
        target_modules=find_places(model, config.style),
    )
