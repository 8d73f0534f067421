"""A wish to stop while a model answers prompts: it is heeded at its next pass, not when all have been answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from tunekit.train.signals import StopRequest

if TYPE_CHECKING:
    from tunekit.train.causal import CausalTrainer

T = TypeVar("T")


class Cut(Exception):
    """The run was asked to stop; what was under way is left."""


def unless_asked(trainer: CausalTrainer, work: Callable[[], T], instead: Callable[[], object] = lambda: None) -> T:
    """What ``work`` gives; every rank must be here.

    Args:
        trainer: its model is at work.
        work: is left as soon as the run is asked to stop; until its model has done its last pass, it says nothing to
            the other ranks.
        instead: says what ``work`` would have said to the other ranks, which may have come to its end.

    Raises:
        Cut: on every rank, where one of them was asked to stop meanwhile.
    """
    found: list[T] = []
    try:
        with _heeding(trainer.stop, trainer.accelerator.unwrap_model(trainer.model)):
            found.append(work())
    except Cut:
        instead()
    if trainer.ranks.sum([not found])[0]:
        raise Cut
    return found[0]


@contextmanager
def left_for_later(trainer: CausalTrainer) -> Iterator[None]:
    """An epoch of training; a step that a wish to stop cuts short is left for the run that goes on."""
    import torch

    step, random = trainer.state.global_step, torch.get_rng_state()  # a loader draws a number as an epoch begins
    try:
        yield
    except Cut:
        trainer.stopping = trainer.control.should_training_stop = True
        if trainer.saves:
            if trainer.state.global_step == step:
                torch.set_rng_state(random)
            trainer._save_checkpoint(trainer.model, None)


@contextmanager
def _heeding(stop: StopRequest, model: Any) -> Iterator[None]:
    """Raises `Cut` before a pass of the model, once somebody has asked to stop."""

    def look(*_: Any) -> None:
        if stop.signum is not None:
            raise Cut

    hook = model.register_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()
