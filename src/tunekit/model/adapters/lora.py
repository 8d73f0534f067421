"""Low-rank adaptation: LoRA, with rsLoRA and DoRA (arXiv 2106.09685, 2312.03732, 2402.09353)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tunekit.recipe.schema import Block

if TYPE_CHECKING:
    from peft import PeftConfig


class Config(Block):
    """The `adapter:` block of kind lora."""

    kind: Literal["lora"]
    r: int = Field(16, ge=1, le=4096, description="rank")
    alpha: float = Field(32, gt=0, description="scale; the update is multiplied by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the adapter's input")
    targets: Literal["all-linear"] | tuple[str, ...] = Field("all-linear", description="all-linear, or module names")
    rslora: bool = Field(False, description="scale by alpha / sqrt(r) instead")
    dora: bool = Field(False, description="decompose the weight into magnitude and direction")
    train_modules: tuple[str, ...] = Field((), description="further modules trained in full and saved with the adapter")


def peft_config(config: Config) -> PeftConfig:
    """PEFT's own configuration for this block."""
    from peft import LoraConfig, TaskType

    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.targets if isinstance(config.targets, str) else list(config.targets),
        use_rslora=config.rslora,
        use_dora=config.dora,
        modules_to_save=list(config.train_modules) or None,
    )
