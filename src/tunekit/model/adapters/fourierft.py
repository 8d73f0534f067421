"""A few trained frequencies of the update's spectrum: FourierFT (arXiv 2405.03003)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tunekit.core.errors import UserError
from tunekit.model.adapters._shared.structure import target_widths
from tunekit.recipe.adapters import TargetedBlock

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

LEARNING_RATE = 3e-3


class Config(TargetedBlock):
    """The `adapter:` block of kind fourierft."""

    kind: Literal["fourierft"]
    frequencies: int = Field(1000, ge=1, description="trained numbers a layer; at most input times output width")
    scale: float = Field(150.0, gt=0, description="factor of the update")
    location_seed: int = Field(777, ge=0, le=2**32 - 1, description="of the places of the frequencies")


def peft_config(config: Config, model: PreTrainedModel, steps: int) -> PeftConfig:
    """PEFT's own configuration for this block.

    Raises:
        UserError: a layer has fewer weights than there are frequencies.
    """
    from peft import FourierFTConfig, TaskType

    for name, taken, given in target_widths(model, config.targets):
        if config.frequencies > taken * given:
            what = f"{config.frequencies} frequencies are more than the weights of '{name}'"
            raise UserError(what, where="adapter.frequencies", fix=f"at most {taken * given}")

    return FourierFTConfig(
        task_type=TaskType.CAUSAL_LM,
        n_frequency=config.frequencies,
        scaling=config.scale,
        random_loc_seed=config.location_seed,
        init_weights=True,  # zeros: PEFT's own default begins with a random update
    )
