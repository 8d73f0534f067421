"""What the processes of a run tell each other: small numbers and plain values, on the CPU, in step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


class Ranks:
    """The processes of this run; every method must be called by all of them at the same place."""

    def __init__(self) -> None:
        self.many = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.world = dist.get_world_size() if self.many else 1
        self.rank = dist.get_rank() if self.many else 0
        # numbers on the CPU need a group that takes them: NCCL does not, and would wait for the device
        self._group = dist.new_group(backend="gloo") if self.many and dist.get_backend() != "gloo" else None

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums over all ranks, the same on each."""
        if not self.many:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return [float(value) for value in total]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks."""
        if not self.many:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self._group)
        return values

    def wait(self) -> None:
        """Returns when all ranks are here."""
        if self.many:
            dist.barrier(group=self._group)
