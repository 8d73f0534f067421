"""Means of what a trainer counts between two logged lines: summed on the device, read when they are logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.train.ranks import Ranks


class Sums:
    """Totals and counts by name; a mean is the total over all ranks by the count over all ranks."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[Any, Any]] = {}

    def add(self, name: str, total: Any, count: Any) -> None:
        """Adds numbers, or tensors without a dimension: nothing waits for a device."""
        before = self.values.get(name, (0.0, 0.0))
        self.values[name] = (before[0] + total, before[1] + count)

    def means(self, ranks: Ranks) -> dict[str, float]:
        """The mean of each name, and a new beginning; every rank must be here. Of nothing there is no mean."""
        totals: dict[str, list[float]] = {}
        for part in ranks.gather(self.state()):
            for name, (total, count) in part.items():
                both = totals.setdefault(name, [0.0, 0.0])
                both[0] += total
                both[1] += count
        self.values = {}
        return {name: total / count for name, (total, count) in totals.items() if count}

    def state(self) -> dict[str, list[float]]:
        """Plain values, from which `restore` makes the same."""
        return {name: [float(total), float(count)] for name, (total, count) in self.values.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.values = {name: (total, count) for name, (total, count) in state.items()}
