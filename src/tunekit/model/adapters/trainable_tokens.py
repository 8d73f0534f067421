"""The embeddings of some tokens only: for new tokens, or for words with a new meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from tunekit.core.errors import UserError
from tunekit.model.adapters._shared.structure import name_of
from tunekit.recipe.adapters import AdapterBlock

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LEARNING_RATE = 1e-3
_WHERE = "adapter.tokens"


class Config(AdapterBlock):
    """The `adapter:` block of kind trainable_tokens."""

    kind: Literal["trainable_tokens"]
    tokens: tuple[str, ...] | tuple[int, ...] = Field(
        min_length=1, description="tokens as the tokenizer has them, or ids"
    )
    extra: dict[str, Any] = Field(default_factory=dict, description="any other field of PEFT's configuration class")

    @field_validator("tokens")
    @classmethod
    def _once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        twice = sorted({each for each in value if value.count(each) > 1})
        if twice:
            raise ValueError(f"tokens that differ; {twice[0]!r} is named twice")
        if any(isinstance(each, int) and each < 0 for each in value):
            raise ValueError("ids from 0")
        return value


def tokenize(config: Config, tokenizer: PreTrainedTokenizerBase) -> Config:
    """The block with ids in the place of tokens.

    Raises:
        UserError: the tokenizer has no such token.
    """
    known = tokenizer.get_vocab()
    ids = []
    for token in config.tokens:
        if isinstance(token, str) and token not in known:
            pieces = " ".join(tokenizer.tokenize(token))
            raise UserError(
                f"the tokenizer has no token '{token}'", where=_WHERE, fix=f"it is written as several: {pieces}"
            )
        ids.append(known[token] if isinstance(token, str) else token)
    return config.model_copy(update={"tokens": tuple(sorted(set(ids)))})


def peft_config(config: Config, model: PreTrainedModel, steps: int) -> PeftConfig:
    """PEFT's own configuration for this block: the rows of the embeddings, and of the output head if it has its own.

    Raises:
        UserError: the model has no such row.
    """
    from peft import TaskType, TrainableTokensConfig

    assert all(isinstance(token, int) for token in config.tokens), "tokenize comes first"
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows = len(embeddings.weight)
    for token in config.tokens:
        if isinstance(token, int) and token >= rows:
            raise UserError(f"there is no token {token}: the model has {rows} embeddings", where=_WHERE)
    places = [name_of(model, embeddings)]
    # a head of its own must learn to write the tokens; a tied one follows the embeddings
    if head is not None and head.weight is not embeddings.weight:
        places.append(name_of(model, head))
    return TrainableTokensConfig(task_type=TaskType.CAUSAL_LM, token_indices=list(config.tokens), target_modules=places)
