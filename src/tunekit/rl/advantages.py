"""From rewards to advantages: GAE, groups, leave-one-out, the KL penalty.

``N`` answers, ``B`` answers of a batch, ``T`` tokens, padded on the right; ``K`` rewards. Nothing here has a gradient
but `kl_estimate`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch

from tunekit.core.errors import DivergedError

Scale = Literal["group", "batch", "none"]
KlKind = Literal["k1", "k2", "k3"]
_EPSILON = 1e-4  # added to standard deviations, as in DeepSeekMath's and TRL's code


@torch.no_grad()
def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimates and the returns that values are fitted to, both (B, T); 0 outside the mask.

    arXiv 1506.02438, eq. 16. An answer ends with its last token, after which the value is 0. Tokens outside the mask
    are passed over, between others too.

    Args:
        rewards: (B, T) of each token.
        values: (B, T) before each token.
        mask: (B, T) bool: the answer's own tokens.
        gamma: discount of a token.
        lam: 0 trusts the values, 1 the rewards.
    """
    advantages = torch.zeros_like(values)
    running, after = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for t in range(values.shape[1] - 1, -1, -1):
        own = mask[:, t]
        found = rewards[:, t] + gamma * after - values[:, t] + gamma * lam * running
        running, after = torch.where(own, found, running), torch.where(own, values[:, t], after)
        advantages[:, t] = found.where(own, 0.0)
    return advantages, (advantages + values).where(mask, 0.0)


@torch.no_grad()
def whiten(values: torch.Tensor, mask: torch.Tensor, *, shift_mean: bool = True) -> torch.Tensor:
    """Values scaled to variance 1 over ``mask`` (bool, same shape), and to mean 0 with ``shift_mean``; 0 outside.

    The variance is the sample's (divided by n - 1). Over several ranks or micro-batches all values belong in one call.
    """
    inside = values[mask].double()
    if not len(inside):
        return torch.zeros_like(values)
    mean = inside.mean()
    variance = inside.var() if len(inside) > 1 else torch.zeros_like(mean)
    scaled = (values - mean) * torch.rsqrt(variance + 1e-8) + (0.0 if shift_mean else mean)
    return scaled.to(values.dtype).where(mask, 0.0)


def _group_sums(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Sums (G,) of values (N,) by group."""
    return values.new_zeros(int(groups.max()) + 1).index_add(0, groups, values)


def _deviation(squares: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Standard deviation of a sample; 0 of a single value, which has none."""
    return (squares / (counts - 1).clamp(min=1)).sqrt()


@torch.no_grad()
def group_relative(rewards: torch.Tensor, groups: torch.Tensor, scale: Scale = "group") -> torch.Tensor:
    """GRPO's advantages (N,): each reward less the mean of its group (arXiv 2402.03300).

    An answer without a reward (nan) has advantage 0 and does not count in its group.

    Args:
        rewards: (N,) of all answers of a rollout.
        groups: (N,) long, from 0: which prompt each answer is to.
        scale: divided by the standard deviation of the ``group`` or of the ``batch``, or not (Dr. GRPO, arXiv
            2503.20783).
    """
    known = ~rewards.isnan()
    counted, exact = known.double(), rewards.double().where(known, 0.0)
    counts = _group_sums(counted, groups)
    centred = (exact - (_group_sums(exact, groups) / counts.clamp(min=1))[groups]) * counted
    if scale == "group":
        centred = centred / (_deviation(_group_sums(centred.square(), groups), counts)[groups] + _EPSILON)
    elif scale == "batch":
        total = counted.sum()
        mean = exact.sum() / total.clamp(min=1)
        centred = centred / (_deviation(((exact - mean) * counted).square().sum(), total) + _EPSILON)
    return centred.to(rewards.dtype)


@torch.no_grad()
def group_relative_each(rewards: torch.Tensor, groups: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """GDPO's advantages (N,): rewards (N, K) each scaled in its group, weighed (K,), summed, scaled over the batch.

    arXiv 2601.05242. nan as in `group_relative`; an answer with some rewards has the sum of those.
    """
    each = torch.stack([group_relative(column, groups) for column in rewards.unbind(1)], 1)
    total = (each * weights).sum(1).masked_fill(rewards.isnan().all(1), math.nan)
    return group_relative(total, torch.zeros_like(groups))


@torch.no_grad()
def leave_one_out(rewards: torch.Tensor, groups: torch.Tensor, *, normalise: bool = False) -> torch.Tensor:
    """RLOO's advantages (N,): each reward less the mean of the others of its group (arXiv 2402.14740).

    nan as in `group_relative`; 0 too for an answer that is alone in its group.

    Args:
        rewards: (N,) of all answers of a rollout, with their KL penalty.
        groups: (N,) long, from 0.
        normalise: to mean 0 and standard deviation 1 over the answers that have one.
    """
    known = ~rewards.isnan()
    exact = rewards.double().where(known, 0.0)
    counts = _group_sums(known.double(), groups)[groups]
    compared = known & (counts > 1)
    others = (_group_sums(exact, groups)[groups] - exact) / (counts - 1).clamp(min=1)
    advantages = (exact - others).masked_fill(~compared, math.nan)
    if normalise:
        return group_relative(advantages, torch.zeros_like(groups)).to(rewards.dtype)
    return advantages.nan_to_num(0.0).to(rewards.dtype)


def kl_estimate(kind: KlKind, logps: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL of the policy from the reference at each token, estimated by the token that the policy drew, in nats.

    J. Schulman, "Approximating KL divergence" (2020): k1 is unbiased, k2 has less variance, k3 both and is never below
    0. With gradient where ``logps`` have it; log-probabilities of any one shape.
    """
    log_ratio = reference - logps
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return log_ratio.square() / 2
    return torch.expm1(log_ratio) - log_ratio


@torch.no_grad()
def shaped_rewards(scores: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, beta: float) -> torch.Tensor:
    """Rewards (B, T) of tokens: less beta x KL each, and the answer's score at its last (arXiv 1909.08593).

    Args:
        scores: (B,) of the answers.
        kl: (B, T) of `kl_estimate`.
        mask: (B, T) bool: the answer's own tokens; an answer without any gets no reward.
        beta: price of a nat.
    """
    rewards = (-beta * kl).where(mask, 0.0)
    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, places, -1).amax(1, keepdim=True)
    return rewards + torch.where(places == last, scores[:, None], 0.0).to(rewards.dtype)


_LEAST = 0.5
"""No window makes the price less than so much of what it was: it must not become negative."""


class AdaptiveKL:
    """The price of KL that keeps it near a target (arXiv 1909.08593, section 2.2).

    Args:
        beta: price of a nat to begin with, above 0.
        target: KL of an answer, in nats, above 0.
        horizon: answers over which an error of 20 % or more changes the price by 20 %.
    """

    def __init__(self, beta: float, target: float, horizon: float) -> None:
        self.beta, self.target, self.horizon = beta, target, horizon

    def update(self, kl: float, answers: int) -> float:
        """The new price, after ``answers`` whose mean KL was ``kl``.

        Raises:
            DivergedError: the KL is not a number.
        """
        if not math.isfinite(kl):
            raise DivergedError(f"the KL of the answers from the reference is {kl}", fix="lower the learning rate")
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.beta *= max(_LEAST, 1 + error * answers / self.horizon)
        return self.beta

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"beta": self.beta}

    def restore(self, state: Mapping[str, float]) -> None:
        """Goes on from a checkpoint."""
        self.beta = float(state["beta"])
