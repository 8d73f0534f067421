"""Blocks and checks of values that several kinds share."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tunekit.recipe.adapters import AdapterBlock, Targets


class OwnTargetsBlock(AdapterBlock):
    """The block of a kind that has its own choice of modules where the recipe makes none."""

    targets: Targets | None = Field(
        None, description="a regular expression of whole module names, or a list of names; default: the kind's own"
    )
    train_modules: tuple[str, ...] = Field((), description="further modules trained in full and saved with the adapter")
    extra: dict[str, Any] = Field(default_factory=dict, description="any other field of PEFT's configuration class")


class VirtualTokensBlock(AdapterBlock):
    """The block of a kind that puts trained vectors before the text."""

    virtual_tokens: int = Field(20, ge=1, le=4096, description="number of trained vectors before the text")


def refuse_own(extra: dict[str, Any], own: dict[str, str]) -> None:
    """Refuses fields of PEFT in ``extra`` that have a key of their own, whose rules would be passed by.

    Args:
        extra: the block's.
        own: PEFT's name: the key.

    Raises:
        ValueError: the first of them.
    """
    for name in extra.keys() & own.keys():
        raise ValueError(f"without extra.{name}, which has a key of its own: `{own[name]}`")
