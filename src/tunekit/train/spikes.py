"""Loss spikes: a step's loss far above what the run's noise explains. Plain Python, no tensors."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

SPREADS = 10
"""A spike lies so many spreads above the baseline."""
FLOOR, EARLY_FLOOR = 0.1, 0.2
"""The spread counts as at least this share of the baseline: losses that are alike have hardly any of their own."""
EARLY = 8
"""With fewer losses seen, little is known of their spread."""
RISE, EARLY_RISE = 1.0, 8.0
"""Nats by which a spike rises at least. Rows known by heart have losses near zero, which vary by factors and mean
nothing; a row that is new among them costs some tenths of a nat. Early, the first row may have been an easy one and the
next be foreign to the model: that costs what guessing among all tokens costs, the vocabulary's logarithm, 7 to 12."""
REACH = 3
"""A spike rises so many times as far as the highest of the losses before it did. Steps of a single row have losses with
a long tail (most rows are easy, a few are not), of which the spread, that of the middle half, says nothing."""
LASTING = 10
"""After so many spikes in a row the loss has moved for good: they become the baseline."""


@dataclass(frozen=True, slots=True)
class Spike:
    """A loss, the baseline that it left, and how many times as large it is. ``lasting`` spikes came in a row, or 0."""

    loss: float
    baseline: float
    factor: float
    lasting: int = 0

    def words(self) -> str:
        """It in a sentence."""
        if self.lasting:
            return f"the loss has been far above {self.baseline:.4g} for {self.lasting} steps, {self.loss:.4g} now"
        return f"the loss rose from about {self.baseline:.4g} to {self.loss:.4g} ({self.factor:.3g} times as much)"


class SpikeWatch:
    """Compares each loss with the ones before it.

    The baseline is the median of the last losses, the spread 1.4826 times their median absolute deviation: what the
    standard deviation is for a normal distribution. Spikes are kept out of both, so that one does not hide the next.

    Args:
        window: losses that are remembered.
    """

    def __init__(self, window: int = 50) -> None:
        self.losses: deque[float] = deque(maxlen=window)
        self.spikes: list[float] = []  # in a row, until now

    def see(self, loss: float) -> Spike | None:
        """Takes the loss of an optimizer step. Of spikes in a row the first is told, and the one that makes it lasting.

        A loss that is not finite is passed over: that is not a spike but the end of the run.
        """
        if not math.isfinite(loss):
            return None
        baseline = median(self.losses) if self.losses else loss
        if loss <= baseline + self._allowed(baseline):
            self.losses.append(loss)
            self.spikes.clear()
            return None
        self.spikes.append(loss)
        spike = Spike(loss, baseline, loss / baseline if baseline > 0 else math.inf)
        if len(self.spikes) == 1:
            return spike
        if len(self.spikes) < LASTING:
            return None
        self.losses.clear()
        self.losses.extend(self.spikes)
        self.spikes.clear()
        return Spike(loss, baseline, spike.factor, LASTING)

    def _allowed(self, baseline: float) -> float:
        """How far above the baseline a loss may lie."""
        if not self.losses:
            return math.inf
        early = len(self.losses) < EARLY
        spread = 1.4826 * median(abs(loss - baseline) for loss in self.losses)
        floor = (EARLY_FLOOR if early else FLOOR) * abs(baseline)
        least = EARLY_RISE if early else RISE
        return max(SPREADS * max(spread, floor), REACH * (max(self.losses) - baseline), least)

    def state(self) -> dict[str, Any]:
        """Plain values from which `restore` makes the same watch."""
        return {"window": self.losses.maxlen, "losses": list(self.losses), "spikes": list(self.spikes)}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> SpikeWatch:
        """The watch of ``state``: it goes on as the other would have."""
        watch = cls(state["window"])
        watch.losses.extend(state["losses"])
        watch.spikes.extend(state["spikes"])
        return watch
