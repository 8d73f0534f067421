"""Single weights set to zero inside the decoder's linear layers; embeddings and head are left."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunekit.compress.prune.contract import Pruning
from tunekit.compress.prune.layers import Decoder, faults, matrix
from tunekit.compress.prune.masks import grouped, lowest
from tunekit.core.errors import Problem
from tunekit.recipe.schema import Block

if TYPE_CHECKING:
    import torch


class SparseConfig(Block):
    """How many weights become zero: a share of them, or a pattern."""

    sparsity: float | None = Field(None, gt=0, lt=1, description="share of a linear layer's weights that become zero")
    pattern: Literal["2:4", "4:8"] | None = Field(
        None, description="so many zeros in every group of so many neighbours along the inputs"
    )

    @property
    def group(self) -> tuple[int, int] | None:
        """(zeros, neighbours) of the pattern; None without one."""
        if self.pattern is None:
            return None
        count, _, size = self.pattern.partition(":")
        return int(count), int(size)


def problems(config: SparseConfig, decoder: Decoder, *, by_row: bool) -> list[Problem]:
    """What stands against a share or a pattern.

    Args:
        config: the options.
        decoder: of the model.
        by_row: weights are compared within an output's row.
    """
    if (config.sparsity is None) == (config.pattern is None):
        both = "both --sparsity and --pattern are given" if config.pattern else "nothing says how many weights shall go"
        return [Problem(both, "--sparsity", "one of --sparsity 0.5 and --pattern 2:4")]
    group, found = config.group, list(faults(decoder))
    for index in range(len(decoder.layers)):
        for name, module in decoder.linears(index).items():
            outputs, inputs = matrix(module).shape
            count = inputs if by_row else inputs * outputs
            if group is not None and inputs % group[1]:
                what = f"groups of {group[1]} do not fill the {inputs} inputs of '{name}'"
                return [*found, Problem(what, "--pattern", "take --sparsity 0.5")]
            if config.sparsity is not None and not 0 < round(config.sparsity * count) < count:
                what = f"{config.sparsity:g} of {count} weights is {round(config.sparsity * count)} ('{name}')"
                return [*found, Problem(what, "--sparsity", "take a share between, such as 0.5")]
    return found


def mask_of(scores: torch.Tensor, config: SparseConfig, *, by_row: bool) -> torch.Tensor:
    """True where a weight goes, (outputs, inputs)."""
    if config.group is not None:
        return grouped(scores, *config.group)
    assert config.sparsity is not None, config
    return lowest(scores, config.sparsity, by_row=by_row)


def clear(
    pruning: Pruning, index: int, scores: Callable[[str, torch.Tensor], torch.Tensor], *, by_row: bool
) -> dict[str, Any]:
    """Sets weights of one layer to zero.

    Args:
        pruning: the model.
        index: of the layer.
        scores: of a linear layer's (outputs, inputs) weights, by its name; the lowest go.
        by_row: compared within an output's row.

    Returns:
        Of each linear layer's tensor: how many of its values are zero now, how many there are, and whether it
        lies (inputs, outputs).
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    found = {}
    with torch.no_grad():
        for name, module in pruning.decoder.linears(index).items():
            weights = matrix(module)
            weights.masked_fill_(mask_of(scores(name, weights), pruning.config, by_row=by_row), 0)
            zeros = int((weights == 0).sum())
            found[f"{name}.weight"] = {"zeros": zeros, "values": weights.numel(), "turned": isinstance(module, Conv1D)}
    return found
