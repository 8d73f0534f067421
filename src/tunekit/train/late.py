"""What a device knows of a step, read without waiting for it; and an optimizer that the device itself holds back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


class Late:
    """Numbers on their way from a device to the host.

    Args:
        values: shape (N,), on any device; copied beside what the device does next.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._event: Any = None
        if values.device.type == "cuda":
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._host = values.to("cpu", copy=True)

    def read(self) -> list[float]:
        """The numbers; waits until the copy is done."""
        if self._event is not None:
            self._event.synchronize()
        return [float(value) for value in self._host]


@dataclass(frozen=True)
class Step:
    """An optimizer step whose loss and gradient norm are known to the device, and soon to the host.

    Args:
        number: counted from 1.
        window: its batches, as the collator made them.
        values: loss and gradient norm.
    """

    number: int
    window: list[dict[str, Any]]
    values: Late


class Brake:
    """Lets the device leave out an update, and all after it, without the host being asked.

    torch's fused optimizers skip an update where their ``found_inf`` is 1; loss scaling of fp16 uses it. Here it is set
    once a loss or a gradient norm was not finite, and stays so: when the host reads of it, a step later, the weights
    are still those before that step.

    Args:
        optimizer: torch's own, without a wrapper, with ``fused=True``.
        device: of the loss.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.optimizer: Any = optimizer
        self.broken = torch.zeros((), device=device)

    @staticmethod
    def fits(optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer can be held back by the device."""
        fused = all(group.get("fused") for group in optimizer.param_groups)
        return fused and bool(getattr(optimizer, "_step_supports_amp_scaling", False))

    def see(self, values: torch.Tensor) -> None:
        """Looks at loss and gradient norm before the optimizer steps.

        Args:
            values: shape (2,).
        """
        self.broken = torch.maximum(self.broken, 1.0 - torch.isfinite(values).all().float())
        self.optimizer.found_inf = self.broken
