"""Some layers or modules trained in full, and the rest frozen."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from tunekit.core.errors import UserError
from tunekit.model.adapters._shared.structure import decoder_layers
from tunekit.model.targets import check_names
from tunekit.recipe.adapters import AdapterBlock

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEARNING_RATE = 5e-5


class Config(AdapterBlock):
    """The `adapter:` block of kind freeze."""

    kind: Literal["freeze"]
    train: str | tuple[str, ...] | None = Field(
        None, min_length=1, description="a regular expression of whole module names, or a list of names"
    )
    last_layers: int | None = Field(None, ge=1, description="the last so many layers")

    @field_validator("train")
    @classmethod
    def _expression(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"a regular expression ({error}), or a list of names") from None
        return value

    @model_validator(mode="after")
    def _something(self) -> Config:
        if self.train is None and self.last_layers is None:
            raise ValueError("with train or last_layers, or nothing would be trained")
        if self.start is not None:
            raise ValueError("without start, which is an adapter's: name the model folder as model.name")
        return self


def apply(config: Config, model: PreTrainedModel) -> PreTrainedModel:
    """The model, of which only what is named takes gradients; weights that are tied are trained in both places.

    Raises:
        UserError: a name or expression that fits no module, or more layers than there are.
    """
    named = dict(model.named_modules())
    found = []
    if isinstance(config.train, str):
        found = [module for name, module in named.items() if re.fullmatch(config.train, name)]
        if not found:
            fix = "it must fit the whole name, such as `model.layers.0.mlp`"
            raise UserError(f"no module's name fits the expression '{config.train}'", where="adapter.train", fix=fix)
    elif config.train is not None:
        check_names(model, config.train, "adapter.train")
        found = [m for full, m in named.items() if any(f".{full}".endswith(f".{name}") for name in config.train)]
    if config.last_layers is not None:
        layers = decoder_layers(model)[1]
        if config.last_layers > len(layers):
            what = f"last_layers is {config.last_layers}; the model has {len(layers)}"
            raise UserError(what, where="adapter.last_layers", fix=f"at most {len(layers)}")
        found += list(layers)[-config.last_layers :]
    model.requires_grad_(False)
    for module in found:
        module.requires_grad_(True)
    return model
