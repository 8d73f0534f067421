"""Rows through a decoder one layer at a time, so that each layer is judged by what those before it, pruned, hand on.

What is held at once is the rows between two layers, (row, T, H), on the CPU; no layer's inner activations are kept.
The model's own forward says once what else each layer is given: positions, masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from tunekit.compress.prune.layers import Decoder, architecture
from tunekit.core.errors import DataError, UserError

if TYPE_CHECKING:
    import torch

CLOSE = 1e-3
"""A layer run alone must give what it gives inside the model, to this part of the largest number."""
Call = tuple[tuple[Any, ...], dict[str, Any]]


class Blocks:
    """The decoder's layers, each with its rows.

    Args:
        decoder: of a model in evaluation mode.
        rows: token ids, (row, token).

    Raises:
        DataError: there are no rows.
        UserError: a layer needs more than it is given from before, so it cannot be run alone.
    """

    def __init__(self, decoder: Decoder, rows: Sequence[Sequence[int]]) -> None:
        if not any(len(row) for row in rows):
            raise DataError("there are no rows to look at", where="--calib", fix="name rows: --calib data.jsonl")
        self._decoder = decoder
        self._states: list[torch.Tensor] = []
        self._calls: list[list[Call]] = []
        for row in rows:
            self._catch(row, check=not self._states)

    def _catch(self, ids: Sequence[int], *, check: bool) -> None:
        """The row on its way into each layer, and what the layer is given beside it."""
        import torch

        model, layers = self._decoder.model, self._decoder.layers
        states: dict[int, torch.Tensor] = {}
        calls: dict[int, Call] = {}

        def look(index: int, _layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, calls[index] = _parted(args, kwargs)
            if check or index == 0:
                states[index] = hidden.cpu()

        with ExitStack() as hooks, torch.no_grad():
            for index, layer in enumerate(layers):
                hooks.callback(layer.register_forward_pre_hook(partial(look, index), with_kwargs=True).remove)
            model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
        if len(calls) < len(layers):
            raise self._not_alone(min(set(range(len(layers))) - calls.keys()))
        self._calls.append([calls[index] for index in range(len(layers))])
        self._states.append(states[0])
        for index in range(len(layers) - 1 if check else 0):
            ours, own = self._run(index, states[index], calls[index]), states[index + 1]
            if ours.shape != own.shape or float((ours - own).abs().max()) > CLOSE * float(own.abs().max()):
                raise self._not_alone(index)

    def _not_alone(self, index: int) -> UserError:
        what = f"the layers of a {architecture(self._decoder.model)} cannot be run one by one"
        return UserError(what, where=f"{self._decoder.name}.{index}", fix="take `--way magnitude` or `--way depth`")

    def _run(self, index: int, hidden: torch.Tensor, call: Call) -> torch.Tensor:
        import torch

        args, kwargs = call
        with torch.no_grad():
            found = self._decoder.layers[index](hidden.to(self._decoder.model.device), *args, **kwargs)
        state: torch.Tensor = (found[0] if isinstance(found, tuple) else found).cpu()
        return state

    def norms(self, index: int) -> dict[str, torch.Tensor]:
        """Of every input of every linear layer inside a layer: its L2 norm over all tokens, (inputs,) float32.

        Raises:
            UserError: a linear layer saw no token, or numbers that are not finite.
        """
        with squares(self._decoder.linears(index)) as sums:
            for state, calls in zip(self._states, self._calls, strict=True):
                self._run(index, state, calls[index])
        for name, module in self._decoder.linears(index).items():
            if name not in sums:
                raise UserError(f"no row reaches '{name}'", where=type(module).__name__, fix="take `--way magnitude`")
            if not bool(sums[name].isfinite().all()):
                raise UserError("what it is given is not finite", where=name, fix="was the model's training sound?")
        return {name: value.sqrt() for name, value in sums.items()}

    def go_on(self, index: int) -> None:
        """Runs the rows through a layer as it now is: what comes out goes into the next."""
        pairs = zip(self._states, self._calls, strict=True)
        self._states = [self._run(index, state, calls[index]) for state, calls in pairs]


def _parted(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, Call]:
    """The hidden states of a layer's call, and the rest of it."""
    if args:
        return args[0], (args[1:], dict(kwargs))
    return kwargs["hidden_states"], ((), {key: value for key, value in kwargs.items() if key != "hidden_states"})


@contextmanager
def squares(linears: Mapping[str, torch.nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """While the block runs: sums of squares of the linear layers' inputs, over tokens."""
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, _module: Any, args: tuple[Any, ...]) -> None:
        found = args[0].float().square().flatten(0, -2).sum(0)
        sums[name] = sums[name] + found if name in sums else found

    with ExitStack() as hooks:
        for name, module in linears.items():
            hooks.callback(module.register_forward_pre_hook(partial(add, name)).remove)
        yield sums
