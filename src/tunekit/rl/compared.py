"""Advantages from the answers to the same prompt: GRPO and RLOO."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunekit.rl.advantages import KlKind, Scale, group_relative, group_relative_each, kl_estimate, leave_one_out
from tunekit.rl.rollouts import Drawn, Rollout


def compared(rollouts: Sequence[Rollout], scale: Scale) -> None:
    """Fills in GRPO's advantages: the same for all tokens of an answer."""
    answers, rewards, groups = _answers(rollouts)
    _enter(answers, group_relative(rewards, groups, scale))


def compared_each(rollouts: Sequence[Rollout], weights: Sequence[float]) -> None:
    """Fills in GDPO's advantages, of the rewards by name, with the weights of those in their order."""
    answers, _, groups = _answers(rollouts)
    each = torch.tensor([list(drawn.parts.values()) for drawn in answers])
    _enter(answers, group_relative_each(each, groups, torch.tensor(weights)))


def left_out(rollouts: Sequence[Rollout], price: float, kind: KlKind, *, normalise: bool) -> None:
    """Fills in RLOO's advantages, of rewards less ``price`` times the answer's KL."""
    answers, rewards, groups = _answers(rollouts)
    if price:
        rewards = rewards - price * torch.tensor([_kl(drawn, kind) for drawn in answers])
    _enter(answers, leave_one_out(rewards, groups, normalise=normalise))


def _answers(rollouts: Sequence[Rollout]) -> tuple[list[Drawn], torch.Tensor, torch.Tensor]:
    answers = [drawn for rollout in rollouts for drawn in rollout.answers]
    groups = [number for number, rollout in enumerate(rollouts) for _ in rollout.answers]
    return answers, torch.tensor([drawn.reward for drawn in answers]), torch.tensor(groups)


def _kl(drawn: Drawn, kind: KlKind) -> float:
    old, reference = (torch.tensor(drawn.numbers[name]) for name in ("old", "reference"))
    return float(kl_estimate(kind, old, reference).sum())


def _enter(answers: Sequence[Drawn], advantages: torch.Tensor) -> None:
    for drawn, value in zip(answers, advantages.tolist(), strict=True):
        drawn.numbers["advantages"] = [value] * len(drawn.ids)
