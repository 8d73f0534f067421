"""LoRA whose ranks move to the layers that need them: AdaLoRA (arXiv 2303.10512)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from tunekit.core.errors import UserError
from tunekit.recipe.adapters import TargetedBlock
from tunekit.recipe.schema import Warmup

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

LEARNING_RATE = 1e-3
_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class Config(TargetedBlock):
    """The `adapter:` block of kind adalora."""

    kind: Literal["adalora"]
    r: int = Field(16, ge=1, le=4096, description="mean rank of the layers at the end")
    init_r: int | None = Field(None, ge=2, le=4096, description="rank of every layer at the start; default 1.5 * r")
    alpha: float = Field(32, gt=0, description="scale")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the adapter's input")
    tinit: Warmup = Field(0.1, description="steps, or fraction of the run, before ranks are taken away")
    tfinal: Warmup = Field(0.3, description="steps, or fraction of the run, at the end with the ranks as they are")
    every: int = Field(10, ge=1, description="steps between two looks at the ranks")
    beta1: float = Field(0.85, ge=0, lt=1, description="decay of the mean of a weight's importance")
    beta2: float = Field(0.85, ge=0, lt=1, description="decay of its uncertainty")
    orthogonal: float = Field(0.5, ge=0, description="weight of the loss that keeps A and B orthogonal")

    @property
    def first_r(self) -> int:
        """Rank of every layer at the start."""
        return self.init_r if self.init_r is not None else max(self.r + 1, self.r * 3 // 2)

    @model_validator(mode="after")
    def _ranks_fall(self) -> Config:
        if self.first_r <= self.r:
            raise ValueError(f"of an init_r above r ({self.r}), as ranks are only taken away; it is {self.first_r}")
        if self.tinit < 1 and self.tfinal < 1 and self.tinit + self.tfinal >= 1:
            raise ValueError(f"of tinit + tfinal below 1, the whole run; they are {self.tinit + self.tfinal:g}")
        return self


def peft_config(config: Config, model: PreTrainedModel, steps: int) -> PeftConfig:
    """PEFT's own configuration for this block.

    Raises:
        UserError: the run is too short to take ranks away.
    """
    from peft import AdaLoraConfig, TaskType

    tinit = _steps(config.tinit, steps)
    tfinal = max(_steps(config.tfinal, steps), 1)  # the last budget is settled at that step from the end
    if tinit + tfinal >= steps:
        raise UserError(
            f"adalora keeps its ranks for {tinit} steps at the start and {tfinal} at the end; the run has {steps}",
            where="adapter.tinit",
            fix="train for longer, or lower tinit and tfinal",
        )
    return AdaLoraConfig(
        task_type=TaskType.CAUSAL_LM,
        target_r=config.r,
        init_r=config.first_r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        tinit=tinit,
        tfinal=tfinal,
        deltaT=config.every,
        beta1=config.beta1,
        beta2=config.beta2,
        orth_reg_weight=config.orthogonal,
        total_step=steps,
    )


def _steps(value: float, steps: int) -> int:
    return int(value) if value >= 1 or value == 0 else round(value * steps)


def further_loss(model: PeftModel) -> torch.Tensor | None:
    """What keeps A's rows and B's columns orthogonal: the mean distance of their products from the identity."""
    import torch

    weight = model.peft_config["default"].orth_reg_weight
    distances = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("lora_A" in name or "lora_B" in name):
            product = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter  # (r, r)
            identity = torch.eye(len(product), dtype=product.dtype, device=product.device)
            distances.append(torch.linalg.matrix_norm(product - identity))
    return weight * torch.stack(distances).mean() if weight and distances else None


def after_step(model: PeftModel, step: int) -> None:
    """Takes ranks away where they matter least."""
    model.base_model.update_and_allocate(step)


def state(model: PeftModel) -> dict[str, Any]:
    """What the choice of ranks goes on from, beside the weights: tensors by name."""
    import torch

    allocator = model.base_model.rankallocator
    found = {f"{kind}:{name}": value for kind in _SCORES for name, value in getattr(allocator, kind, {}).items()}
    pattern = model.peft_config["default"].rank_pattern or {}
    return found | {f"pattern:{name}": torch.tensor(kept) for name, kept in pattern.items()}


def restore(model: PeftModel, values: dict[str, Any]) -> None:
    """Takes back what `state` gave."""
    allocator, config = model.base_model.rankallocator, model.peft_config["default"]
    device = next(model.parameters()).device
    pattern = {}
    for full, value in values.items():
        kind, _, name = full.partition(":")
        if kind == "pattern":
            pattern[name] = value.tolist()
        else:
            getattr(allocator, kind)[name] = value.to(device)
    config.rank_pattern = pattern or None
