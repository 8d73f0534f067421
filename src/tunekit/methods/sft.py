"""Supervised fine-tuning on conversations, instructions or prompt-completion pairs."""

from __future__ import annotations

from tunekit.recipe.schema import Block


class Config(Block):
    """The `sft:` block."""
