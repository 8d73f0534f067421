"""Trained vectors before the text, scaled by a low-rank matrix for the task: multitask prompts (arXiv 2303.02861)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunekit.model.adapters._shared.blocks import VirtualTokensBlock

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

PEFT = "multitask_prompt_tuning"
LEARNING_RATE = 3e-2


class Config(VirtualTokensBlock):
    """The `adapter:` block of kind multitask_prompt; all rows are of one task."""

    kind: Literal["multitask_prompt"]
    ranks: int = Field(1, ge=1, le=256, description="rank of the task's own matrix")


def peft_config(config: Config, model: PreTrainedModel, steps: int) -> PeftConfig:
    """PEFT's own configuration for this block."""
    from peft import MultitaskPromptTuningConfig, TaskType

    return MultitaskPromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=config.virtual_tokens,
        num_ranks=config.ranks,
        num_tasks=1,
    )


def prepare(model: PeftModel) -> None:
    """Lets the model be called without `task_ids`: every row is of task 0. For a loaded adapter too."""
    model.prompt_encoder["default"].register_forward_pre_hook(_first_task)


def _first_task(encoder: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    import torch

    prompts, tasks = inputs  # (B, virtual tokens), (B,) or None
    if tasks is None:
        tasks = torch.zeros(len(prompts), dtype=torch.long, device=prompts.device)
    return prompts, tasks
