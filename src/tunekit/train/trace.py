"""Watches a pass through a model for the first module that spoils what it was given whole."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from tunekit.evaluate.mode import plain_model

if TYPE_CHECKING:
    import torch
    from torch import nn


class Trace:
    """Watches a pass for the first module that spoils what it was given whole: values ahead, or gradients back."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.runs = model, 0
        plain = plain_model(model)
        self.output = plain.get_output_embeddings()  # the loss is computed where it stands
        self.head = f"the head or the loss of {type(plain).__name__}"
        self.running: dict[nn.Module, tuple[int, bool]] = {}  # the number of the run; whether its inputs are whole
        self.spoilt: list[tuple[str, int, str]] = []  # what was not finite, in which run, and its name; as it came

    def watch(self, stack: ExitStack) -> None:
        """Puts hooks on all modules and weights; ``stack`` takes them off."""
        for name, module in self.model.named_modules():
            inner = name not in ("", "base_model", "base_model.model") and module is not self.output
            shown = f"{shown_name(name)} ({type(module).__name__})" if inner else self.head
            enter, leave = partial(self._enter, shown), partial(self._leave, shown)
            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        for name, weight in self.model.named_parameters():
            if weight.requires_grad:
                see = partial(self._see, "gradient", 0, shown_name(name))
                stack.callback(weight.register_hook(see).remove)  # type: ignore[no-untyped-call]

    def first(self, what: str) -> str | None:
        """The first that spoilt it: ``made`` ahead, ``passed back``, or the ``gradient`` of a weight."""
        seen = enumerate(self.spoilt)
        found = (name for at, (w, run, name) in seen if w == what and ("given", run, name) not in self.spoilt[:at])
        return next(found, None)

    def module(self) -> str | None:
        """The first module; what no module did, the head and the loss did."""
        return self.first("made") or self.first("passed back") or (self.head if self.first("given") else None)

    def _enter(self, name: str, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        import torch

        self.runs += 1
        see = partial(self._see, "passed back", self.runs, name)
        self.running[module] = self.runs, all(is_finite(value, mask=True) for value in _tensors((args, kwargs)))

        def view(value: Any) -> Any:  # what it passes back is then seen by itself, where others read this tensor too
            if isinstance(value, torch.Tensor) and value.requires_grad and torch.is_grad_enabled():
                value = value.view_as(value)
                value.register_hook(see)  # type: ignore[no-untyped-call]
            return value

        return tuple(map(view, args)), {key: view(value) for key, value in kwargs.items()}

    def _leave(self, name: str, module: nn.Module, _: Any, output: Any) -> None:
        run, whole = self.running.pop(module)
        for value in _tensors(output):
            if whole:
                self._see("made", run, name, value)
            if value.requires_grad:
                value.register_hook(partial(self._see, "given", run, name))  # type: ignore[no-untyped-call]

    def _see(self, what: str, run: int, name: str, value: torch.Tensor) -> None:
        if not is_finite(value):
            self.spoilt.append((what, run, name))


def shown_name(name: str) -> str:
    """A name within the model as it is without an adapter."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def is_finite(tensor: torch.Tensor, mask: bool = False) -> bool:
    """Whether all values are; minus infinity may stand in what may be a ``mask``. Quantized values say nothing."""
    if not tensor.is_floating_point() or tensor.itemsize < 2 or not tensor.numel():
        return True
    low, high = tensor.detach().aminmax()  # nan where one is; takes no memory of the tensor's size
    return math.isfinite(high) and (mask or math.isfinite(low))
