"""Weights that matter least by |weight| x norm of their input become zero, within each output's row.

Sun et al., A Simple and Effective Pruning Approach for Large Language Models, arXiv 2306.11695.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from tunekit.compress.contract import Weight
from tunekit.compress.prune.blocks import Blocks
from tunekit.compress.prune.contract import Pruning
from tunekit.compress.prune.layers import Decoder
from tunekit.compress.prune.ways._shared import sparse
from tunekit.core.errors import Problem

if TYPE_CHECKING:
    import torch

CALIBRATED = True
TRAINABLE = False
Config = sparse.SparseConfig


def problems(config: Config, decoder: Decoder) -> list[Problem]:
    """A share that is none in a row, or a pattern that does not fit."""
    return sparse.problems(config, decoder, by_row=True)


def choose(pruning: Pruning) -> dict[str, Any]:
    """One layer after the other, each on what the pruned ones before it hand on.

    Raises:
        UserError: layers that cannot be run one by one.
        DataError: no rows.
    """
    blocks = Blocks(pruning.decoder, pruning.rows)
    found: dict[str, Any] = {}
    for index in range(len(pruning.decoder.layers)):
        found |= sparse.clear(pruning, index, partial(_scores, blocks.norms(index)), by_row=True)
        blocks.go_on(index)
    return {"tensors": found}


def _scores(norms: Mapping[str, torch.Tensor], name: str, weights: torch.Tensor) -> torch.Tensor:
    return weights.float().abs() * norms[name]


def shrink(pruning: Pruning, chosen: Mapping[str, Any]) -> None:
    """Zeros stay where they are."""


def kept(chosen: Mapping[str, Any], weight: Weight) -> float:
    """All of it: zeros are written as every other number."""
    return 1.0
