"""All weights trained, with less memory for the optimizer: GaLore, APOLLO, LOMO (arXiv 2403.03507, 2412.05270)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from tunekit.core.errors import UserError
from tunekit.model.adapters._shared.structure import architecture
from tunekit.recipe.adapters import AdapterBlock

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEARNING_RATE = 1e-4
_INSTALL = {
    "galore": {"galore_torch": "pip install galore-torch"},
    "apollo": {"apollo_torch": "pip install apollo-torch"},
    "lomo": {"lomo_optim": "pip install lomo-optim"},
}
PACKAGES = {module: line for lines in _INSTALL.values() for module, line in lines.items()}
"""Everything that one of the methods needs; `packages` says which."""
_FAMILY = {
    "galore": "galore", "galore_8bit": "galore", "galore_adafactor": "galore", "apollo": "apollo", "lomo": "lomo",
    "adalomo": "lomo",
}  # fmt: skip
_OPTIMIZER = {
    "galore": "galore_adamw", "galore_8bit": "galore_adamw_8bit", "galore_adafactor": "galore_adafactor",
    "apollo": "apollo_adamw", "lomo": "lomo", "adalomo": "adalomo",
}  # fmt: skip


class Config(AdapterBlock):
    """The `adapter:` block of kind layerwise."""

    kind: Literal["layerwise"]
    method: Literal["galore", "galore_8bit", "galore_adafactor", "apollo", "lomo", "adalomo"] = Field(
        "galore", description="galore, apollo: states of low rank; lomo, adalomo: no gradient is kept"
    )
    rank: int | None = Field(None, ge=1, le=8192, description="of the optimizer's states; default 128")
    scale: float | None = Field(None, gt=0, description="of the updates; default 0.25 in galore, 1 in apollo")
    update_every: int | None = Field(None, ge=1, description="steps between new projections; default 200")
    targets: str | tuple[str, ...] | None = Field(
        None, min_length=1, description="default all-linear; a regular expression of whole names, or a list of names"
    )
    per_layer: bool = Field(
        False, description="update each weight as its gradient comes, and keep none: not with accumulation"
    )

    @field_validator("targets")
    @classmethod
    def _no_group(cls, value: Any) -> Any:
        if value in ("attention", "mlp"):
            raise ValueError(f"all-linear, names or an expression; the optimizers do not know {value}")
        if isinstance(value, str):
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"all-linear, or a regular expression ({error})") from None
        return value

    @model_validator(mode="after")
    def _of_low_rank(self) -> Config:
        if _FAMILY[self.method] == "lomo":
            for name in ("rank", "scale", "update_every", "targets"):
                if getattr(self, name) is not None:
                    raise ValueError(f"without {name}, which belongs to galore and apollo, not to {self.method}")
        if self.per_layer and _FAMILY[self.method] == "lomo":
            raise ValueError(f"without per_layer: {self.method} always works so")
        if self.start is not None:
            raise ValueError("without start, which is an adapter's: name the model folder as model.name")
        return self

    @property
    def expression(self) -> str:
        """The targets as one regular expression of whole names, or ``all-linear``."""
        if self.targets is None or isinstance(self.targets, str):
            return self.targets or "all-linear"
        return rf"(?:.*\.)?(?:{'|'.join(map(re.escape, self.targets))})"


def packages(config: Config) -> dict[str, str]:
    """What the method needs: module: how it is installed."""
    return _INSTALL[_FAMILY[config.method]]


def arguments(config: Config) -> dict[str, Any]:
    """The fields of TrainingArguments that choose the optimizer."""
    name = _OPTIMIZER[config.method]
    if _FAMILY[config.method] == "lomo":
        return {"optim": name}
    values = {"rank": config.rank, "update_proj_gap": config.update_every, "scale": config.scale}
    given = ",".join(f"{key}={value}" for key, value in values.items() if value is not None)
    return {
        "optim": f"{name}_layerwise" if config.per_layer else name,
        "optim_target_modules": config.expression,
        **({"optim_args": given} if given else {}),
    }


def apply(config: Config, model: PreTrainedModel) -> PreTrainedModel:
    """The model as it is: everything is trained.

    Raises:
        UserError: no linear layer is among the targets, or they are of a class that the optimizers pass over.
    """
    from torch import nn

    model.requires_grad_(True)
    if _FAMILY[config.method] == "lomo":
        return model
    wanted, head = config.expression, model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    if not any(wanted == "all-linear" or re.fullmatch(wanted, name) for name in linear):
        raise UserError(
            f"{config.method} finds no linear layers to work on in {architecture(model)} (targets: {wanted})",
            where="adapter.targets",
            fix="name linear layers, or take method: lomo",
        )
    return model
