"""A head of values on the policy's own states: what an answer is still going to be worth, before each of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tunekit.evaluate.mode import plain_model
from tunekit.rl.rollouts import Rollout

if TYPE_CHECKING:
    import torch

FILE = "values.safetensors"
_HEAD = "value_head"


def add_head(model: Any) -> None:
    """Gives a model a head of values, zero at first; it is trained with the policy, and not saved with the model."""
    import torch
    from torch import nn

    plain = plain_model(model)
    head = nn.Linear(plain.config.get_text_config().hidden_size, 1, dtype=torch.float32, device=plain.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    setattr(plain, _HEAD, head)
    plain._keys_to_ignore_on_save = {*(plain._keys_to_ignore_on_save or ()), f"{_HEAD}.weight", f"{_HEAD}.bias"}


def begin_at(model: Any, mean: float, rollouts: Sequence[Rollout]) -> None:
    """Shifts a fresh head, and the values that it gave, so that these have the mean reward of the first answers.

    From 0 the first errors would be as large as the rewards are far from it, and through the policy's own states they
    would move the policy too.
    """
    head = getattr(plain_model(model), _HEAD, None)
    if head is None:
        return
    answers = [drawn.numbers for rollout in rollouts for drawn in rollout.answers]
    shift = mean - fmean(value for numbers in answers for value in numbers["values"])
    head.bias.data += shift
    for numbers in answers:
        numbers["values"] = [value + shift for value in numbers["values"]]


def values_of(model: Any, hidden: torch.Tensor) -> torch.Tensor | None:
    """(L,) float32, of the states (L, E); None for a model without the head."""
    import torch

    head = getattr(plain_model(model), _HEAD, None)
    if head is None:
        return None
    with torch.autocast(hidden.device.type, enabled=False):
        found: torch.Tensor = head(hidden.float())[:, 0]
    return found


def save(model: Any, folder: Path) -> None:
    """Writes the head, if there is one, into a checkpoint."""
    from safetensors.torch import save_file

    head = getattr(plain_model(model), _HEAD, None)
    if head is not None:
        save_file({name: value.contiguous() for name, value in head.state_dict().items()}, folder / FILE)


def load(model: Any, folder: Path) -> None:
    """Takes back what `save` wrote."""
    from safetensors.torch import load_file

    head = getattr(plain_model(model), _HEAD, None)
    if head is not None:
        head.load_state_dict(load_file(folder / FILE))
