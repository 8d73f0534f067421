"""Evaluating in the middle of a training without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def evaluating(model: Any, seed: int | None = None) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module's mode and torch's random states are as before.

    Modes are kept per module, because a training may hold single modules in evaluation mode on purpose. Gradients are
    switched off by ``no_grad`` and not by ``inference_mode``, whose tensors could not be trained on if a module kept
    one of them (rotary embeddings do). Gradient checkpointing needs no switch: it acts in training mode only.

    Args:
        model: any module; the random states kept are the CPU's and those of the devices it lies on.
        seed: seeds torch inside; None leaves the random states as they are.
    """
    import torch

    devices = {torch.device("cpu")} | {parameter.device for parameter in model.parameters()}
    states = [(device, _random_state(device)) for device in devices if device.type != "meta"]
    modes = [(module, module.training) for module in model.modules()]
    if seed is not None:
        torch.manual_seed(seed)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for device, state in states:
            _set_random_state(device, state)


def plain_model(model: Any) -> Any:
    """The transformers model inside a PEFT model, or ``model`` itself."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def without_adapter(model: Any) -> Iterator[Any]:
    """The model that an adapter was put on, as it was before: many kinds do not begin with its output.

    Args:
        model: with an adapter of PEFT, or any other, which is left as it is.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        yield model
    elif has_virtual_tokens(model):
        yield model.get_base_model()  # nothing was put into it
    else:
        with model.disable_adapter():
            yield model


def has_virtual_tokens(model: Any) -> bool:
    """Whether PEFT puts learned tokens before the text (prompt tuning, prefix tuning and their kin)."""
    from peft import PeftModel

    return isinstance(model, PeftModel) and bool(model.active_peft_config.is_prompt_learning)


def _random_state(device: torch.device) -> torch.Tensor:
    import torch

    if device.type == "cpu":
        return torch.get_rng_state()
    accelerator = torch.get_device_module(device)  # Apple's has one generator and takes no device
    state: torch.Tensor = accelerator.get_rng_state() if device.type == "mps" else accelerator.get_rng_state(device)
    return state


def _set_random_state(device: torch.device, state: torch.Tensor) -> None:
    import torch

    if device.type == "cpu":
        torch.set_rng_state(state)
    elif device.type == "mps":
        torch.get_device_module(device).set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)
