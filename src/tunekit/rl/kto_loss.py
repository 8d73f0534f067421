"""KTO: learning from answers that were found good or bad, one by one (arXiv 2402.01306)."""

from __future__ import annotations

from typing import Literal

import torch

KtoKind = Literal["kto", "apo_zero_unpaired"]


def kto_loss(
    ratios: torch.Tensor,
    good: torch.Tensor,
    *,
    beta: float,
    z0: torch.Tensor | float | None = None,
    kind: KtoKind = "kto",
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> torch.Tensor:
    """Loss (B,) of each answer, in the order given.

    ``kto`` is eq. 7 of arXiv 2402.01306 less its constant; ``apo_zero_unpaired`` has no reference point (arXiv
    2408.06266, eq. 7).

    Args:
        ratios: (B,) log of policy over reference, summed over each answer's tokens, with gradient.
        good: (B,) bool.
        beta: how strongly a log-ratio counts.
        z0: how far the policy is from its reference at all, at least 0, without gradient; None where the loss has none.
        kind: which loss.
        desirable: weight of the good answers.
        undesirable: weight of the bad ones.
    """
    assert kind != "kto" or z0 is not None, "KTO has a reference point"
    distance = ratios - z0 if kind == "kto" and z0 is not None else ratios
    weight = torch.where(good, desirable, undesirable).to(ratios.dtype)
    return weight * torch.sigmoid(beta * torch.where(good, -distance, distance))
