"""The keys that every reward's block has."""

from __future__ import annotations

from pydantic import Field

from tunekit.recipe.schema import Block


class RewardBlock(Block):
    """One reward; its further keys are those of its kind."""

    weight: float = Field(1.0, description="its part in the sum; below 0 a penalty, 0 only measures")
    name: str | None = Field(None, min_length=1, description="what it is called in logs; default: its kind")


def unfit(wanted: str, fix: str) -> ValueError:
    """What a validator raises: what a value must be, and as a note what to write in its place."""
    error = ValueError(wanted)
    error.add_note(fix)
    return error
