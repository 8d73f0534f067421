"""A module of the model with its bottleneck adapters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional

from tunekit.model.bottleneck.config import BottleneckConfig

NONLINEARITIES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """y = base(x) + scale * up(dropout(nonlinearity(down(s)))), with s = base(x), or s = x for parallel adapters.

    Several active adapters are added up; each sees the same s. `x` and `y` are (B, T, hidden); where the base gives a
    tuple, its first member is adapted.

    Args:
        base_layer: the module that is wrapped; nothing of it is touched.
        width: the hidden size of the model.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up", "bottleneck_scale")
    other_param_names = ("settings",)

    # PEFT's classes carry no types
    active_adapters: list[str]
    disable_adapters: bool
    set_adapter: Callable[..., None]
    _cast_input_dtype: Callable[[torch.Tensor, torch.dtype], torch.Tensor]

    def __init__(self, base_layer: nn.Module, width: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.width = width
        self.bottleneck_down = nn.ModuleDict()  # width -> size
        self.bottleneck_up = nn.ModuleDict()  # size -> width
        self.bottleneck_scale = nn.ParameterDict()  # only those that are learned
        self.settings: dict[str, BottleneckConfig] = {}
        self.merged_adapters: list[str] = []

    def update_layer(self, name: str, config: BottleneckConfig) -> None:
        """Adds one adapter, which changes nothing until it is trained: the projection up begins at zero."""
        device, _ = self._get_base_layer_device_and_dtype(self.base_layer)
        self.bottleneck_down[name] = down = nn.Linear(self.width, config.size, device=device, dtype=torch.float32)
        self.bottleneck_up[name] = up = nn.Linear(config.size, self.width, device=device, dtype=torch.float32)
        for each in (down.bias, up.bias, up.weight):
            nn.init.zeros_(each)
        if config.scale == "learned":
            self.bottleneck_scale[name] = nn.Parameter(torch.ones((), device=device))
        self.settings[name] = config
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The base's output, adapted."""
        result = self.base_layer(x, *args, **kwargs)
        active = () if self.disable_adapters else [name for name in self.active_adapters if name in self.settings]
        if not active:
            return result
        output, *rest = result if isinstance(result, tuple) else (result,)
        updates = [self._update(name, x if self.settings[name].style == "parallel" else output) for name in active]
        update = functools.reduce(torch.add, updates)
        # some experts give (B * T, hidden); the sum of a bfloat16 base and float32 adapters is float32
        adapted = (output + update.reshape(output.shape)).to(output.dtype)
        return (adapted, *rest) if isinstance(result, tuple) else adapted

    def _update(self, name: str, source: torch.Tensor) -> torch.Tensor:
        """What one adapter adds; (B, T, hidden) to (B, T, hidden)."""
        config, down = self.settings[name], self.bottleneck_down[name]
        small = NONLINEARITIES[config.nonlinearity](down(self._cast_input_dtype(source, next(down.parameters()).dtype)))
        small = functional.dropout(small, config.dropout, self.training)
        scale = self.bottleneck_scale[name] if config.scale == "learned" else config.scale
        update: torch.Tensor = self.bottleneck_up[name](small) * scale
        return update

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, None]:
        """The device of a base that may be a whole MLP; and no dtype, since adapters stay in float32."""
        first = next(base_layer.parameters(), None)
        return (None if first is None else first.device), None
