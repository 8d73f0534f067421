"""The device that a model lies on, by the name that a recipe gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunekit.core.errors import MachineError

if TYPE_CHECKING:
    import torch


def device_of(name: str, where: str = "") -> torch.device:
    """The device of that name; ``auto``: a GPU where there is one.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        where: the recipe's key that holds it.

    Raises:
        MachineError: the device is not there.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, is_there in there.items() if is_there))
    if not there[name]:
        raise MachineError(f"there is no device '{name}' here", where=where, fix="device: auto")
    return torch.device(name)
