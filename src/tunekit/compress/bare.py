"""A model's shape without its numbers, from its config alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunekit.core.errors import UserError, first_line
from tunekit.model.quiet import hushed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def bare_model(config: Any, where: str = "model") -> PreTrainedModel:
    """The model that a config describes, without memory for its numbers.

    Args:
        config: of transformers.
        where: its place, for the error.

    Raises:
        UserError: transformers does not know it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"), hushed():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, AttributeError) as error:
        what = f"transformers cannot make this model: {first_line(error)}"
        raise UserError(what, where=where, fix="is it a causal language model?") from error
    return model
