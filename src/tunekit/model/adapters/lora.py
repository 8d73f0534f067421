"""Low-rank adaptation: LoRA, rsLoRA, DoRA, LoRA+ (arXiv 2106.09685, 2312.03732, 2402.09353, 2402.12354)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from tunekit.core.errors import UserError
from tunekit.model.adapters._shared.blocks import refuse_own
from tunekit.model.adapters._shared.data_starts import eva_start, gradient_start, quantization_start
from tunekit.model.adapters._shared.structure import refuse_conv1d
from tunekit.model.targets import resolve_targets
from tunekit.recipe.adapters import TargetedBlock

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

INITS = ("default", "gaussian", "orthogonal", "pissa", "pissa_niter_N", "olora", "eva", "loftq", "lora_ga")
_OWN = {
    "r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout", "use_rslora": "rslora", "use_dora": "dora",
    "init_lora_weights": "init", "loftq_config": "init", "lora_ga_config": "init",
}  # fmt: skip
_FROM_WEIGHTS = ("pissa", "olora", "lora_ga")
# DoRA takes its magnitudes when the adapter is made, and these change A B or the base weights otherwise
_NOT_WITH_DORA = (*_FROM_WEIGHTS, "loftq")
_REFUSED_EXTRA = {
    "layer_replication": "a model of repeated layers cannot be merged, and the merge would not say so",
    "kasa_config": "it changes the base weights, and the saved adapter would be wrong",
    "corda_config": "it needs a pass over the data that tunekit does not make",
    "arrow_config": "it routes between adapters that were trained before",
    "alora_invocation_tokens": "it needs the invocation tokens in every row",
}


class Config(TargetedBlock):
    """The `adapter:` block of kind lora."""

    kind: Literal["lora"]
    r: int = Field(16, ge=1, le=4096, description="rank")
    alpha: float = Field(32, gt=0, description="scale; the update is multiplied by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the adapter's input")
    rslora: bool = Field(False, description="scale by alpha / sqrt(r) instead")
    dora: bool = Field(False, description="decompose the weight into magnitude and direction")
    plus: float | None = Field(
        None, ge=1, le=1000, description="LoRA+: B's learning rate is so many times that of A; 16 in the paper"
    )
    init: str = Field(
        "default",
        description="default, gaussian, orthogonal; pissa, pissa_niter_N (N rounds of a fast SVD), olora: parts of the "
        "weights; eva, lora_ga: from the data; loftq: from the error of quantized weights",
    )

    @field_validator("init")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in INITS[:4] + INITS[5:] and not re.fullmatch(r"pissa_niter_[1-9]\d?", value):
            raise ValueError(f"one of {', '.join(INITS)} (N from 1 to 99)")
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> Config:
        refuse_own(self.extra, _OWN)
        for name in self.extra.keys() & _REFUSED_EXTRA.keys():
            raise ValueError(f"without extra.{name}: {_REFUSED_EXTRA[name]}")
        if self.dora and self.init.startswith(_NOT_WITH_DORA):
            raise ValueError(f"without dora where init is {self.init}: the saved adapter would be wrong")
        if self.start is not None and self.init != "default":
            raise ValueError(f"without init: {self.init} where start gives A and B their values")
        if self.init == "orthogonal" and self.r % 2:
            raise ValueError(f"of even r where init is orthogonal; r is {self.r}")
        if self.extra.get("lora_bias") and (self.dora or self.init != "default"):
            raise ValueError("without extra.lora_bias where there is an init or dora")
        return self


def peft_config(config: Config, model: PreTrainedModel, steps: int) -> PeftConfig:
    """PEFT's own configuration for this block.

    Raises:
        UserError: the model's layers have no form for this start.
    """
    from peft import LoraConfig, TaskType
    from peft.tuners.lora.config import LoraGAConfig

    # EVA and LoRA-GA begin as the default does; `initialise` gives them their values
    init: Any = True if config.init in ("default", "loftq") else config.init
    if config.init.startswith(_FROM_WEIGHTS):
        _refuse_quantized(config, model)
    if config.init == "olora":
        refuse_conv1d(model, "lora with init: olora", config.targets, fix="take init: pissa")
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        use_dora=config.dora,
        init_lora_weights=init,
        **({"lora_ga_config": LoraGAConfig()} if config.init == "lora_ga" else {}),
    )


def _refuse_quantized(config: Config, model: PreTrainedModel) -> None:
    # what is left of the weights would be rounded again: they would not add up to the base any more
    for name in resolve_targets(model, config.targets):
        if not model.get_submodule(name).weight.is_floating_point():
            raise UserError(
                f"init: {config.init} takes its start out of the weights, and those of '{name}' are quantized",
                where="adapter.init",
                fix="leave model.quantize out, or take init: loftq",
            )


def initialise(model: PeftModel, config: Config, batches: Iterable[Mapping[str, torch.Tensor]]) -> None:
    """Gives A and B the values of the starts that need data or the quantized weights.

    Raises:
        UserError: no data, or the base is not what the start needs.
    """
    start = {"eva": eva_start, "lora_ga": gradient_start, "loftq": quantization_start}.get(config.init)
    if start is not None:
        start(model, batches)


def parameter_groups(model: PeftModel, config: Config, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """LoRA+: the groups of PEFT's `create_loraplus_optimizer`; empty without `plus`.

    B and vectors (DoRA's magnitudes) learn at ``lr * plus``; vectors of biases and norms have no weight decay; adapters
    of embeddings learn at PEFT's 1e-6. Unlike there, a vector that is trained whole beside the adapter keeps `lr`.
    """
    if config.plus is None:
        return []
    from peft.tuners.lora.layer import Embedding
    from transformers.pytorch_utils import ALL_LAYERNORM_LAYERS
    from transformers.trainer_pt_utils import get_parameter_names

    decayed = {name for name in get_parameter_names(model, ALL_LAYERNORM_LAYERS) if "bias" not in name}
    embeddings = {name for name, module in model.named_modules() if isinstance(module, Embedding)}
    members: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.rsplit(".", 2)[0] in embeddings:
            group = (1e-6, weight_decay)
        elif "lora_B" in name or (parameter.ndim == 1 and "lora_" in name):
            group = (lr * config.plus, weight_decay if name in decayed else 0.0)
        else:
            group = (lr, weight_decay)
        members.setdefault(group, []).append(parameter)
    return [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in members.items()]
