"""Next-token prediction on text, from random weights or continuing from a model."""

from __future__ import annotations

from tunekit.recipe.schema import Block


class Config(Block):
    """The `pretrain:` block."""
