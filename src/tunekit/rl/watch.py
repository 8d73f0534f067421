"""A watch over rewards: a reward that rises while the policy runs away from its reference is not to be trusted.

Goodhart's law in numbers (arXiv 2210.10760): what is optimised stops measuring what was meant. The signs are a KL far
beyond what a good policy needs, and answers that grow or shrink several times over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIRST, LAST = 3, 5
"""Windows at the beginning that are compared with, and at the end that are compared."""
KL, GROWN = 25.0, 2.5
"""Nats an answer, and times the length, that are suspicious."""


class RewardWatch:
    """Sees the means of each window; tells once of each sign."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []
        self.told: set[str] = set()

    def see(self, means: Mapping[str, float]) -> str | None:
        """Words for the user, when the reward has risen and something has run away; else None."""
        kept = {name: means[name] for name in ("reward", "answer_tokens", "kl", "reward_spread") if name in means}
        self.seen = [*self.seen[:FIRST], *self.seen[FIRST:][-LAST + 1 :], kept]
        flat = [means.get("reward_spread") == 0.0 for means in self.seen[-FIRST:]]
        if len(flat) == FIRST and all(flat) and "flat" not in self.told:
            self.told.add("flat")
            return (
                "all answers to a prompt have earned the same for three windows: there is nothing to learn from. Take "
                "a reward that tells answers apart, more generations, or a higher temperature"
            )
        if len(self.seen) < FIRST + LAST:
            return None
        before, now = self.seen[:FIRST], self.seen[-LAST:]
        risen = _mean(now, "reward") - _mean(before, "reward")
        if risen <= 0 or risen < 0.5 * _mean(before, "reward_spread"):
            return None
        tokens, earlier = _mean(now, "answer_tokens"), max(1.0, _mean(before, "answer_tokens"))
        signs = {
            "kl": (_mean(now, "kl") > KL, f"the KL from the reference is {_mean(now, 'kl'):.1f} nats an answer"),
            "long": (tokens > GROWN * earlier, f"answers have grown from {earlier:.0f} to {tokens:.0f} tokens"),
            "short": (tokens * GROWN < earlier, f"answers have shrunk from {earlier:.0f} to {tokens:.0f} tokens"),
        }
        new = [words for sign, (there, words) in signs.items() if there and sign not in self.told]
        self.told |= {sign for sign, (there, _) in signs.items() if there}
        if not new:
            return None
        return f"the reward has risen by {risen:.3g}, but {' and '.join(new)}: look at the answers (rollouts.jsonl)"

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"seen": self.seen, "told": sorted(self.told)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.seen, self.told = [dict(each) for each in state["seen"]], set(state["told"])


def _mean(windows: list[dict[str, float]], name: str) -> float:
    values = [window[name] for window in windows if name in window]
    return sum(values) / len(values) if values else 0.0
