"""What the blocks of all kinds of adapter share."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from tunekit.recipe.schema import Block

GROUPS = ("all-linear", "attention", "mlp")
"""Words for modules that every decoder model has, under whatever names."""


def _expression(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(value, str) and value not in GROUPS:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"one of {', '.join(GROUPS)}, or a regular expression ({error})") from None
    if not value:
        raise ValueError("at least one name")
    return value


Targets = Annotated[str | tuple[str, ...], AfterValidator(_expression)]


class AdapterBlock(Block):
    """The `adapter:` block of any kind."""

    kind: str
    start: str | None = Field(
        None,
        min_length=1,
        description="run, or folder, of an adapter of the same kind and shape, from which training goes on",
    )


class TargetedBlock(AdapterBlock):
    """The block of a kind that changes modules of the model."""

    targets: Targets = Field(
        "all-linear",
        description="all-linear, attention, mlp, a regular expression of whole module names, or a list of names",
    )
    train_modules: tuple[str, ...] = Field((), description="further modules trained in full and saved with the adapter")
    extra: dict[str, Any] = Field(default_factory=dict, description="any other field of PEFT's configuration class")
