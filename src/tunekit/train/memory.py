"""Out of memory is found out before the first step: the longest batches run first, as a probe."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import MachineError
from tunekit.evaluate.mode import evaluating
from tunekit.plan.plan import Plan
from tunekit.train.available import available_bytes, memory_limit, process_bytes
from tunekit.train.trials import SHORTEST, Trials, Where

if TYPE_CHECKING:
    from torch import nn

FIRST_TOKENS = {"cpu": 16_384, "cuda": 262_144}
"""The search for the largest micro-batch begins with at most so many tokens."""


@dataclass(frozen=True, slots=True)
class Probed:
    """The longest training batch, which fits: its longest row, and the peak above what was in use before."""

    where: str
    tokens: int
    micro_batch: int
    seconds: float
    peak_gb: float


def probe(trainer: Any, plan: Plan, where: Where) -> Probed:
    """Runs the longest training batch and the longest evaluation batch as a step would; nothing is changed by it.

    Memory for the optimizer's states is held meanwhile. No other rank is spoken to.

    Args:
        trainer: a `CausalTrainer` with its model on its device, not yet wrapped for distributed training.
        plan: the resolved plan.
        where: ``file:line`` of a row of the ledger.

    Raises:
        MachineError: memory does not suffice; names the longest row, and the settings that were tried and fit.
    """
    started, size = time.perf_counter(), plan.micro_batch_size
    with _trials(trainer, plan, where) as trials:
        before = _start_meter(trials.on_cuda)
        if not trials.trains(size):
            raise _training_error(trials, size)
        untouched = 0 if trials.on_cuda else trials.reserve(size)
        peak = _peak(trials.on_cuda) - before + untouched
        if not trials.evaluates(plan.recipe.eval.batch_size):
            raise _evaluation_error(trials, plan.recipe.eval.batch_size)
        seconds = round(time.perf_counter() - started, 3)
        return Probed(trials.train.where(where), trials.train.tokens, size, seconds, round(peak / 1e9, 3))


def largest_micro_batch(trainer: Any, plan: Plan, where: Where) -> int:
    """The largest divisor of this process's share of the batch whose longest batch fits; other ranks may find another.

    Raises:
        MachineError: not even one example fits.
    """
    with _trials(trainer, plan, where) as trials:
        most = FIRST_TOKENS["cuda" if trials.on_cuda else "cpu"]
        sizes = [size for size in trials.divisors() if size == 1 or size * trials.train.tokens <= most]
        found = next((size for size in sizes if trials.trains(size)), None)
        if found is None:
            raise _training_error(trials, 1)
        return found


def _training_error(trials: Trials, size: int) -> MachineError:
    """What did not fit, and what does."""
    found = _training_fixes(trials, size) if trials.trains(1, cut=SHORTEST) else []
    rows = "the longest training example"
    if (count := trials.train.among(size)) > 1:
        rows = f"a micro-batch of the {count} longest training examples"
    none = "nothing smaller fits either: free memory, take a smaller model, or train an adapter"
    return MachineError(
        f"out of memory: {rows} ({trials.train.tokens:,} tokens) and the optimizer's states "
        f"({trials.states / 1e9:.2f} GB) do not fit into the {trials.free / 1e9:.2f} GB beside the weights",
        where=trials.train.where(trials.place),
        fix=f"each of these was tried and fits: {'; '.join(found)}" if found else none,
    )


def _training_fixes(trials: Trials, size: int) -> list[str]:
    """The first settings of each kind that fit; each of them is tried."""
    smaller = [other for other in trials.divisors() if other < size]
    found = _first((f"train.micro_batch_size: {n}", partial(trials.trains, n)) for n in smaller)
    sizes = {size: "", 1: " with train.micro_batch_size: 1"} if size > 1 else {1: ""}
    if not trials.plan.recipe.train.gradient_checkpointing and trials.model.supports_gradient_checkpointing:
        found += _first(
            (f"train.gradient_checkpointing: true{words}", partial(trials.trains, n, checkpointing=True))
            for n, words in sizes.items()
        )
    found += _first(
        (f"data.max_length: {cut}{words}", partial(trials.trains, n, cut=cut))
        for n, words in sizes.items()
        for cut in _halves(trials.train.tokens, SHORTEST)
    )
    return found


def _evaluation_error(trials: Trials, size: int) -> MachineError:
    """What did not fit, and the largest evaluation batch that does."""
    assert trials.held_out is not None
    size = trials.held_out.among(size)
    found = _first((f"eval.batch_size: {n}", partial(trials.evaluates, n)) for n in _halves(size, 1))
    return MachineError(
        f"out of memory: an evaluation batch of {size}, with the longest held-out row ({trials.held_out.tokens:,} "
        f"tokens) does not fit into the {trials.free / 1e9:.2f} GB beside the weights",
        where=trials.held_out.where(trials.place),
        fix=f"tried, and it fits: {found[0]}" if found else "no eval.batch_size fits: lower data.max_length",
    )


def _first(attempts: Iterable[tuple[str, Callable[[], bool]]]) -> list[str]:
    """The words of the first attempt that fits, alone in a list; empty when none does."""
    return list(islice((words for words, fits in attempts if fits()), 1))


def _halves(size: int, least: int) -> list[int]:
    found = []
    while (size := size // 2) >= least:
        found.append(size)
    return found


@contextmanager
def _trials(trainer: Any, plan: Plan, where: Where) -> Iterator[Trials]:
    """Trials under a limit; modes and random numbers are as before afterwards."""
    import torch

    trials = Trials(trainer, plan, where)
    with _undisturbed(trials.model):
        trials.warm_up()
        if trials.on_cuda:
            trials.free = torch.cuda.mem_get_info(trials.device)[0]
            yield trials
        else:
            trials.free = available_bytes() // plan.processes  # all ranks probe at the same time
            with memory_limit(trials.free):
                yield trials


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Random numbers of every kind, modes and buffers are as before afterwards."""
    import numpy as np

    python, numpy = random.getstate(), np.random.get_state()
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with evaluating(model):
            yield
    finally:
        for buffer, value in buffers:
            buffer.detach().copy_(value)
        random.setstate(python)
        np.random.set_state(numpy)


def _start_meter(on_cuda: bool) -> int:
    """Bytes in use; the peak is counted from here."""
    import torch

    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with suppress(OSError):  # some containers forbid it: then the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return process_bytes("VmRSS")


def _peak(on_cuda: bool) -> int:
    import torch

    return torch.cuda.max_memory_allocated() if on_cuda else process_bytes("VmHWM")
