"""Advantages from values: PPO's, by generalised advantage estimation over the tokens of each answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from tunekit.rl.advantages import KlKind, gae, kl_estimate, shaped_rewards, whiten
from tunekit.rl.rollouts import Rollout


@dataclass(frozen=True)
class Estimate:
    """How advantages are estimated: see the keys of `ppo:`."""

    kl: KlKind
    gamma: float
    lam: float
    whiten_rewards: bool


def estimated(rollouts: Sequence[Rollout], price: float, how: Estimate) -> None:
    """Fills in advantages, whitened over the rollout, and the returns that values are fitted to.

    A token's reward is minus ``price`` times its KL from the reference; the last one has the answer's reward too.
    """
    answers = [drawn for rollout in rollouts for drawn in rollout.answers]
    lengths = torch.tensor([len(drawn.ids) for drawn in answers])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]

    def table(name: str) -> torch.Tensor:
        return pad_sequence([torch.tensor(drawn.numbers[name]) for drawn in answers], batch_first=True)

    values = table("values")
    kl = kl_estimate(how.kl, table("old"), table("reference")) if price else torch.zeros_like(values)
    scores = torch.tensor([drawn.reward for drawn in answers])
    rewards = shaped_rewards(scores, kl, mask, price)
    if how.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = gae(rewards, values, mask, how.gamma, how.lam)
    advantages = whiten(advantages, mask)
    for at, drawn in enumerate(answers):
        size = len(drawn.ids)
        drawn.numbers |= {"advantages": advantages[at, :size].tolist(), "returns": returns[at, :size].tolist()}
