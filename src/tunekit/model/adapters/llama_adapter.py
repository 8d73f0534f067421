"""Trained prompts with a gate in the attention of the upper layers: LLaMA-Adapter (arXiv 2303.16199)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tunekit.core.errors import UserError
from tunekit.model.adapters._shared.structure import architecture, decoder_layers
from tunekit.recipe.adapters import AdapterBlock

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

PEFT = "adaption_prompt"
TRAINS_BASE = True
"""What it trains lies in the base's own type, or is one of its modules."""
LEARNING_RATE = 9e-3


class Config(AdapterBlock):
    """The `adapter:` block of kind llama_adapter."""

    kind: Literal["llama_adapter"]
    virtual_tokens: int = Field(10, ge=1, le=4096, description="trained vectors a layer")
    layers: int | None = Field(None, ge=1, description="in so many layers from the top; default: all but two")


def peft_config(config: Config, model: PreTrainedModel, steps: int) -> PeftConfig:
    """PEFT's own configuration for this block.

    Raises:
        UserError: an architecture that PEFT has no such adapter for, or fewer layers than wanted.
    """
    from peft import AdaptionPromptConfig, TaskType
    from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG

    known, own = sorted(TRANSFORMERS_MODEL_CONFIG), architecture(model)
    if own not in known:
        raise UserError(
            f"an adapter of kind llama_adapter has no form for {own}", where="adapter.kind",
            fix=f"it is for {', '.join(known)}; take prefix, which is close to it",
        )  # fmt: skip
    there = len(decoder_layers(model)[1])
    layers = max(there - 2, 1) if config.layers is None else config.layers
    if layers > there:
        raise UserError(f"layers is {layers}; the model has {there}", where="adapter.layers", fix=f"at most {there}")
    return AdaptionPromptConfig(task_type=TaskType.CAUSAL_LM, adapter_len=config.virtual_tokens, adapter_layers=layers)
