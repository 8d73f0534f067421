"""Which weights of a matrix go, by their scores; ties go by their place, so the same input gives the same mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def lowest(scores: torch.Tensor, share: float, *, by_row: bool) -> torch.Tensor:
    """True at the lowest scores.

    Args:
        scores: (outputs, inputs).
        share: of them; of n values ``round(share * n)`` are chosen.
        by_row: compared within each output's row; else within the whole matrix.
    """
    import torch

    flat = scores if by_row else scores.reshape(1, -1)
    count = round(share * flat.shape[1])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask.scatter_(1, flat.argsort(dim=1, stable=True)[:, :count], True)
    return mask.reshape(scores.shape)


def grouped(scores: torch.Tensor, count: int, size: int) -> torch.Tensor:
    """True at the ``count`` lowest scores of every ``size`` neighbours along the inputs.

    Args:
        scores: (outputs, inputs); ``size`` divides the inputs.
        count: that go.
        size: of a group.
    """
    import torch

    assert scores.shape[1] % size == 0, f"{tuple(scores.shape)} in groups of {size}"
    groups = scores.reshape(-1, size)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    mask.scatter_(1, groups.argsort(dim=1, stable=True)[:, :count], True)
    return mask.reshape(scores.shape)
