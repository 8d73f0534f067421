"""Trained vectors before the text's embeddings: prompt tuning (arXiv 2104.08691)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from tunekit.model.adapters._shared.blocks import VirtualTokensBlock

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PEFT = "prompt_tuning"
LEARNING_RATE = 3e-2


class Config(VirtualTokensBlock):
    """The `adapter:` block of kind prompt."""

    kind: Literal["prompt"]
    init: Literal["random", "vocab", "text"] = Field(
        "vocab", description="vocab: embeddings of random tokens; text: those of `text`"
    )
    text: str | tuple[int, ...] | None = Field(
        None, min_length=1, description="for init: text, words or token ids; repeated or cut to virtual_tokens"
    )

    @model_validator(mode="after")
    def _text(self) -> Config:
        if (self.init == "text") != (self.text is not None):
            raise ValueError("with both of init: text and text, or with neither")
        return self


def tokenize(config: Config, tokenizer: PreTrainedTokenizerBase) -> Config:
    """The block with token ids in the place of words: what follows needs no tokenizer, and saves none's place."""
    if not isinstance(config.text, str):
        return config
    return config.model_copy(update={"text": tuple(tokenizer(config.text)["input_ids"])})


def peft_config(config: Config, model: PreTrainedModel, steps: int) -> PeftConfig:
    """PEFT's own configuration for this block; of `init: text` the values come with `initialise`."""
    from peft import PromptTuningConfig, PromptTuningInit, TaskType

    return PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=config.virtual_tokens,
        prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB if config.init == "vocab" else PromptTuningInit.RANDOM,
    )


def initialise(model: PeftModel, config: Config, batches: Iterable[Mapping[str, torch.Tensor]]) -> None:
    """Gives the vectors the embeddings of `text`."""
    import torch

    if config.text is None:
        return
    assert not isinstance(config.text, str), "tokenize comes first"
    prompt = model.prompt_encoder["default"].embedding.weight  # (virtual tokens, width)
    ids = [config.text[at % len(config.text)] for at in range(len(prompt))]
    with torch.no_grad():
        words = model.get_base_model().get_input_embeddings()
        prompt.copy_(words(torch.tensor(ids, device=words.weight.device)))
