"""The smallest weights of each linear layer become zero; no text is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.compress.contract import Weight
from tunekit.compress.prune.contract import Pruning
from tunekit.compress.prune.layers import Decoder
from tunekit.compress.prune.ways._shared import sparse
from tunekit.core.errors import Problem

CALIBRATED = False
TRAINABLE = False
Config = sparse.SparseConfig


def problems(config: Config, decoder: Decoder) -> list[Problem]:
    """A share that is none, or a pattern that does not fit."""
    return sparse.problems(config, decoder, by_row=False)


def choose(pruning: Pruning) -> dict[str, Any]:
    """Compares absolute values within each linear layer."""
    found: dict[str, Any] = {}
    for index in range(len(pruning.decoder.layers)):
        found |= sparse.clear(pruning, index, lambda _, weights: weights.float().abs(), by_row=False)
    return {"tensors": found}


def shrink(pruning: Pruning, chosen: Mapping[str, Any]) -> None:
    """Zeros stay where they are."""


def kept(chosen: Mapping[str, Any], weight: Weight) -> float:
    """All of it: zeros are written as every other number."""
    return 1.0
