"""Trained factors of keys, values and the feed-forward block's inner activations: IA3 (arXiv 2205.05638)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tunekit.model.adapters._shared.blocks import OwnTargetsBlock
from tunekit.model.adapters._shared.structure import expression, feedforward_outputs, keys_and_values

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

LEARNING_RATE = 1e-2


class Config(OwnTargetsBlock):
    """The `adapter:` block of kind ia3; without `targets`: keys, values, and the feed-forward block's last layer."""

    kind: Literal["ia3"]


def peft_config(config: Config, model: PreTrainedModel, steps: int) -> PeftConfig:
    """PEFT's own configuration for this block.

    The feed-forward block's last layer is scaled at its input, as in the paper, and any other layer at its output.

    Raises:
        UserError: keys and values are not found in this model.
    """
    from peft import IA3Config, TaskType

    inner = feedforward_outputs(model)
    return IA3Config(
        task_type=TaskType.CAUSAL_LM,
        # an expression, which may fit more than the targets; a list of other names could not be loaded again
        feedforward_modules=expression(inner) or "no layer",
        target_modules=[*keys_and_values(model), *inner] if config.targets is None else None,
    )
