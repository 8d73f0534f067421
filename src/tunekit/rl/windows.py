"""Which prompts are answered at once, and which optimizer steps learn from their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Window:
    """Steps that learn from the same answers.

    Args:
        number: the epoch, and the window in it.
        rows: the prompts' indices, each once.
        ends: the number of its last step, counted over the run from 1.
        steps: how many steps it has.
    """

    number: tuple[int, int]
    rows: tuple[int, ...]
    ends: int
    steps: int


class Windows:
    """The windows of a run, as the loader of training goes through them.

    Args:
        args: Trainer's.
        accelerator: Trainer's.
        lengths: tokens of each prompt.
        window: batches of prompts that are answered at once.
        passes: how often each is trained on.
    """

    def __init__(self, args: Any, accelerator: Any, lengths: Sequence[int], window: int, passes: int) -> None:
        from tunekit.train.batches import EpochBatches

        micro, world = args.per_device_train_batch_size, accelerator.num_processes
        self.batches = EpochBatches(
            lengths,
            global_batch=micro * world * args.gradient_accumulation_steps,
            micro_batch=micro,
            rank=accelerator.process_index,
            world=world,
            order=args.train_sampling_strategy,
            seed=args.data_seed,
            window=window,
            passes=passes,
        )
        self.steps = -(-len(self.batches) // args.gradient_accumulation_steps)
        self._epoch = -1
        self._found: list[Window] = []

    def at(self, step: int) -> Window:
        """The window of a step, counted over the run from 0."""
        epoch, within = divmod(step, self.steps)
        if epoch != self._epoch:
            self._epoch, self._found = epoch, self._of(epoch)
        return next(window for window in self._found if epoch * self.steps + within < window.ends)

    def _of(self, epoch: int) -> list[Window]:
        self.batches.set_epoch(epoch)
        found, ends = [], epoch * self.steps
        for number, steps in enumerate(self.batches.windows()):
            ends += len(steps)
            rows = tuple(sorted({row for batch in steps for row in batch}))
            found.append(Window((epoch, number), rows, ends, len(steps)))
        return found
