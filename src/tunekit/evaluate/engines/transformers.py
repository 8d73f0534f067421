"""A model in memory, run by transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tunekit.evaluate.local import TransformersEngine
from tunekit.evaluate.scorer import ScoringEngine


class Config(BaseModel):
    """Options of the engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=32, ge=1, description="rows a batch, at most")
    batch_tokens: int = Field(default=4096, ge=1, description="tokens a batch, padding included; a longer row is alone")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="type of the weights; auto: as they are saved, a reward model's in float32"
    )
    quantized: bool | None = Field(
        default=None, description="load the base in the 4 or 8 bits that its adapter was trained on; default: if it was"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="auto: a GPU where there is one")


def around(config: Config, model: Any, tokenizer: Any, stop_ids: Sequence[int]) -> TransformersEngine:
    """The engine of a model that was loaded."""
    return TransformersEngine(model, tokenizer, config.batch_size, config.batch_tokens, tuple(stop_ids))


def scoring(config: Config, model: Any, tokenizer: Any) -> ScoringEngine:
    """The engine of a reward model that was loaded."""
    return ScoringEngine(model, tokenizer, config.batch_size, config.batch_tokens)
