"""Trained vectors before the text's embeddings, made by a small network: P-tuning (arXiv 2103.10385)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from tunekit.model.adapters._shared.blocks import VirtualTokensBlock

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

LEARNING_RATE = 1e-3


class Config(VirtualTokensBlock):
    """The `adapter:` block of kind p_tuning."""

    kind: Literal["p_tuning"]
    encoder: Literal["mlp", "lstm"] = Field("mlp", description="the network")
    hidden: int | None = Field(None, ge=1, description="its width; default: the model's")
    layers: int = Field(2, ge=1, le=16, description="of an lstm; an mlp has two")
    dropout: float = Field(0.0, ge=0, lt=1, description="within an lstm")

    @model_validator(mode="after")
    def _of_an_lstm(self) -> Config:
        if self.encoder == "mlp" and (self.dropout or self.layers != 2):
            raise ValueError("with encoder: lstm where layers or dropout are given")
        return self


def peft_config(config: Config, model: PreTrainedModel, steps: int) -> PeftConfig:
    """PEFT's own configuration for this block."""
    from peft import PromptEncoderConfig, TaskType

    return PromptEncoderConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=config.virtual_tokens,
        encoder_reparameterization_type=config.encoder.upper(),
        encoder_hidden_size=config.hidden,
        encoder_num_layers=config.layers,
        encoder_dropout=config.dropout,
    )
