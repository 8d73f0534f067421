"""Losses of a policy on its own answers: PPO, GRPO and its kin, GSPO, RLOO; and of its value model.

``B`` answers, ``T`` tokens, padded on the right. Losses come token by token; their sum, weighed by `token_weights`, is
what is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

PolicyKind = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo"]
Importance = Literal["token", "sequence", "product"]


@dataclass(frozen=True)
class PolicyLoss:
    """A loss (B, T) a token, 0 outside the mask, and which tokens (B, T) had their ratio clipped."""

    tokens: torch.Tensor
    clipped: torch.Tensor


@dataclass(frozen=True)
class PolicyOptions:
    """Numbers of the policy's loss; `token_weights` honours ``kind`` too."""

    kind: PolicyKind = "grpo"
    importance: Importance = "token"  # the ratio of a token, of GSPO (its sequence's mean), of RLOO (their product)
    low: float = 0.2  # the ratio is held above 1 - low ...
    high: float = 0.2  # ... and below 1 + high; in CISPO below ``high`` itself
    cap: float | None = None  # on the ratio where the advantage is negative (two-sided clipping, arXiv 2505.07291)


_WARM, _COLD = 1.0, 1.05
"""SAPO's temperatures of positive advantages and of the others, as in its paper and in TRL."""


def ratios_of(
    logps: torch.Tensor, old: torch.Tensor, mask: torch.Tensor, importance: Importance = "token"
) -> torch.Tensor:
    """Importance ratios of the policy to the one that gave the answers: (B, T), or (B, 1) of whole sequences.

    ``sequence`` is GSPO's length-normalised ratio (arXiv 2507.18071, eq. 7), ``product`` the sequence's own.
    """
    log_ratio = (logps - old).where(mask, 0.0)
    if importance == "token":
        return log_ratio.exp()
    total = log_ratio.sum(1, keepdim=True)
    return (total if importance == "product" else total / mask.sum(1, keepdim=True).clamp(min=1)).exp()


def policy_loss(
    logps: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    options: PolicyOptions,
) -> PolicyLoss:
    """The policy's loss at each token.

    ``cispo`` is arXiv 2506.13585, eq. 4; ``sapo`` arXiv 2511.20347; the others are PPO's clipped surrogate and differ
    in their weights.

    Args:
        logps: (B, T) of the tokens, in nats, with gradient.
        old: (B, T) when they were drawn.
        advantages: (B,) of answers or (B, T) of tokens.
        mask: (B, T) bool: the answers' own tokens.
        options: which loss.
    """
    advantages = advantages[:, None] if advantages.dim() == 1 else advantages
    ratios = ratios_of(logps, old, mask, options.importance)
    if options.kind == "cispo":
        tokens = -ratios.clamp(max=options.high).detach() * advantages * logps
        clipped = (ratios > options.high) & (advantages > 0)
    elif options.kind == "sapo":
        heat = torch.where(advantages > 0, _WARM, _COLD)
        tokens = -advantages * torch.sigmoid(heat * (ratios - 1)) * 4 / heat
        clipped = torch.zeros_like(ratios, dtype=torch.bool)
    else:
        held = ratios.clamp(1 - options.low, 1 + options.high)
        free = ratios if options.cap is None else ratios.clamp(max=options.cap)
        tokens = -torch.minimum(free * advantages, held * advantages)
        clipped = _clipped(ratios, advantages, options.low, options.high)
    return PolicyLoss(tokens.expand(mask.shape).where(mask, 0.0), clipped.expand(mask.shape) & mask)


def _clipped(ratios: torch.Tensor, advantages: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Where the surrogate is flat: beyond the bound on the side that the advantage pushes to."""
    return ((ratios < 1 - low) & (advantages < 0)) | ((ratios > 1 + high) & (advantages > 0))


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean () of values over a mask (bool) of their shape; 0 over none."""
    return values.where(mask, 0.0).sum() / mask.sum().clamp(min=1)


def value_loss(
    values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, clip: float | None = 0.2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the squared error (B, T) of values, 0 outside the mask, and the share () of tokens that were clipped.

    Values that have gone further than ``clip`` from the ``old`` ones have the larger of the errors with and without the
    last of their way (arXiv 2005.12729, section 3); None clips nothing.
    """
    free = (values - returns).square()
    held = free if clip is None else (old + (values - old).clamp(-clip, clip) - returns).square()
    return torch.maximum(free, held).where(mask, 0.0) / 2, masked_mean((held > free).float(), mask)


@dataclass(frozen=True)
class StepTotals:
    """What an optimizer step is made of, over all its micro-batches and ranks.

    Args:
        sequences: answers.
        tokens: their own tokens.
        rollout_tokens: tokens of the whole rollout, divided by the steps that it is split into: what DAPO and CISPO
            divide by; None when a rollout is one step.
        max_tokens: the longest answer that is drawn, which Dr. GRPO divides by.
    """

    sequences: float
    tokens: float
    rollout_tokens: float | None = None
    max_tokens: int | None = None


def token_weights(kind: PolicyKind, lengths: torch.Tensor, step: StepTotals) -> torch.Tensor:
    """Weights (B,) of each answer's tokens, so that the sums of all micro-batches of a step add up to its loss.

    Where gradients are averaged over ranks, times their number. ``grpo`` and ``sapo`` are the mean over answers of
    means over tokens, ``bnpo`` the mean over the step's tokens, ``dapo`` and ``cispo`` over the rollout's (arXiv
    2503.14476), ``dr_grpo`` divides by what does not depend on the answers (arXiv 2503.20783), ``luspo`` by the number
    of answers.

    Args:
        kind: which loss.
        lengths: (B,) own tokens of these answers.
        step: what they are a part of.
    """
    lengths = lengths.clamp(min=1).double()
    if kind in ("grpo", "sapo"):
        weights = 1 / (lengths * step.sequences)
    elif kind == "luspo":
        weights = torch.full_like(lengths, 1 / step.sequences)
    elif kind == "dr_grpo":
        assert step.max_tokens, "Dr. GRPO divides by the longest answer"
        weights = torch.full_like(lengths, 1 / (step.sequences * step.max_tokens))
    else:
        tokens = step.tokens if kind == "bnpo" or step.rollout_tokens is None else step.rollout_tokens
        weights = torch.full_like(lengths, 1 / max(tokens, 1))
    return weights.float()


def entropy_bonus(
    logps: torch.Tensor, old: torch.Tensor, entropy: torch.Tensor, mask: torch.Tensor, coefficient: float
) -> torch.Tensor:
    """A loss (B, T) a token whose gradient is that of -coefficient x entropy; its value is not, and is not to be shown.

    An entropy with a gradient is taken as it is. Without one the gradient is estimated by the tokens drawn, with the
    entropy as its baseline: of -sum p log p it is the expectation of -(log p + entropy) x the gradient of log p.

    Args:
        logps: (B, T) of the tokens, with gradient.
        old: (B, T) when they were drawn.
        entropy: (B, T) of the distributions that they were drawn from, in nats.
        mask: (B, T) bool: the answers' own tokens.
        coefficient: of the bonus.
    """
    if entropy.requires_grad:
        return (-coefficient * entropy).where(mask, 0.0)
    ratios = (logps.detach() - old).exp()
    return (coefficient * ratios * (logps.detach() + entropy) * logps).where(mask, 0.0)


@torch.no_grad()
def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float:
    """Share of the returns' variance that the values explain, 1 at best; nan where the returns do not vary."""
    wanted, left = returns[mask].double(), (returns - values)[mask].double()
    variance = wanted.var(correction=0)
    return float(1 - left.var(correction=0) / variance) if float(variance) > 0 else float("nan")
