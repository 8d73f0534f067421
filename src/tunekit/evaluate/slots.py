"""A cache whose rows are places: a row that has ended is overwritten by the next one, and nothing else is copied.

Shapes: ``B`` rows, ``H`` heads, ``C`` columns that there is room for, ``T`` columns in use, ``D`` width of a head.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROOM = 128
"""Columns to grow into: transformers' own layer is copied whole at every token."""


def slotted(layer: Any) -> Any:
    """A layer with the content of one of transformers' `DynamicLayer`, and room to grow."""
    return _kind()(layer.keys, layer.values)


@cache
def _kind() -> type[Any]:
    from transformers.cache_utils import DynamicLayer

    class SlotLayer(DynamicLayer):
        """Keys and values (B, H, T, D) are views into storage of C columns, which is copied once in ROOM tokens."""

        def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
            super().__init__()
            self.lazy_initialization(keys, values)
            self._take(keys, values)

        def _take(self, keys: torch.Tensor, values: torch.Tensor, least: int = 0) -> None:
            self.begin, self.end = 0, keys.shape[2]
            self.room_keys, self.room_values = (_with_room(tensor, max(ROOM, least)) for tensor in (keys, values))
            self._show()

        def _show(self) -> None:
            self.keys = self.room_keys[:, :, self.begin : self.end]
            self.values = self.room_values[:, :, self.begin : self.end]

        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            """Writes the next columns; all keys and values."""
            count = key_states.shape[2]
            if self.end + count > self.room_keys.shape[2]:
                self._take(self.keys, self.values, count)
            end = self.end + count
            self.room_keys[:, :, self.end : end] = key_states
            self.room_values[:, :, self.end : end] = value_states
            self.end = end
            self._show()
            return self.keys, self.values

        def batch_select_indices(self, indices: torch.Tensor) -> None:
            """Keeps some rows."""
            self._take(self.keys[indices], self.values[indices])

        def narrow(self, width: int) -> None:
            """Leaves the last ``width`` columns alone in use."""
            self.begin = self.end - width
            self._show()

        def overwrite(self, places: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
            """Puts other rows, of T columns at most, at the right of some places."""
            columns = slice(self.end - keys.shape[2], self.end)
            self.room_keys[places, :, columns] = keys
            self.room_values[places, :, columns] = values

        def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
            """Puts further rows below, on the right."""
            import torch
            from torch.nn.functional import pad

            more = self.end - self.begin - keys.shape[2]
            below = [pad(tensor, (0, 0, more, 0)) for tensor in (keys, values)]
            self._take(torch.cat([self.keys, below[0]]), torch.cat([self.values, below[1]]))

    return SlotLayer


def _with_room(tensor: torch.Tensor, room: int) -> torch.Tensor:
    rows, heads, columns, width = tensor.shape
    found = tensor.new_empty(rows, heads, columns + room, width)
    found[:, :, :columns] = tensor
    return found
