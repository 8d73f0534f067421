"""Which examples each rank sees when: a plan of the epoch that depends on seed and epoch alone, not on the ranks."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice, pairwise
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

Order = Literal["sequential", "random", "group_by_length"]
POOL = 50
"""group_by_length sorts within a pool of so many global batches: little padding, and still a random order."""


class EpochBatches(Sampler[list[int]]):
    """The micro-batches of one rank.

    Global batches are cut from one permutation, so they hold the same examples on any number of ranks and with any
    micro-batch. A last batch that the ranks cannot share evenly is filled with ``EMPTY``, an example without labels,
    which adds nothing to the loss; no row is repeated or left out.

    Args:
        lengths: tokens of each example.
        global_batch: examples of one optimizer step over all ranks.
        micro_batch: examples of one forward pass of one rank.
        rank, world: this rank, and the number of ranks.
        order: sequential, random, or random batches of similar length.
        seed: of the permutation; the epoch is added.
        window: so many batches belong together, see `windows`.
        passes: so often a window is gone through before the next, in another order each time.
    """

    EMPTY = -1

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world: int,
        order: Order,
        seed: int,
        window: int = 1,
        passes: int = 1,
    ) -> None:
        assert global_batch % (micro_batch * world) == 0, (global_batch, micro_batch, world)
        self.lengths, self.global_batch, self.micro_batch = lengths, global_batch, micro_batch
        self.rank, self.world, self.order, self.seed, self.epoch = rank, world, order, seed, 0
        self.window, self.passes = window, passes

    @property
    def windowed(self) -> bool:
        """Whether batches belong together."""
        return self.window > 1 or self.passes > 1

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's permutation."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.lengths), self.global_batch)
        parts = self.global_batch // self.world // self.micro_batch
        if self.windowed:
            return (whole + (rest > 0)) * parts * self.passes
        share = -(-rest // self.world)
        return whole * parts + -(-share // self.micro_batch)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.global_batches():
            if self.order != "sequential":  # dealt out by length: no rank and no micro-batch gets all the long ones
                batch = sorted(batch, key=lambda i: -self.lengths[i])
            # a partial batch of a window is not the last one: a step has as many micro-batches as any other
            whole = self.global_batch if self.windowed else self.world
            filled = batch + [self.EMPTY] * (-len(batch) % whole)
            mine = filled[self.rank :: self.world]
            parts = -(-len(mine) // self.micro_batch)
            if self.order == "sequential":
                yield from (mine[start : start + self.micro_batch] for start in range(0, len(mine), self.micro_batch))
            else:
                yield from (mine[part::parts] for part in range(parts))

    def windows(self) -> list[list[list[int]]]:
        """The epoch's batches, one a step, in the windows that belong together; a last one may be shorter."""
        batches = self._batches()
        if not self.windowed:
            return [[batch] for batch in batches]
        found = []
        for number, start in enumerate(range(0, len(batches), self.window)):
            part = batches[start : start + self.window]
            steps = list(part)
            rows = [row for batch in part for row in batch]
            for turn in range(1, self.passes):
                mixed = random.Random(f"{self.seed} {self.epoch} {number} {turn}").sample(rows, len(rows))
                cuts = [0, *accumulate(map(len, part))]
                steps += [mixed[begin:end] for begin, end in pairwise(cuts)]
            found.append(steps)
        return found

    def global_batches(self) -> list[list[int]]:
        """The epoch's batches in order, one a step; a partial one comes last of its pass."""
        return [batch for window in self.windows() for batch in window]

    def _batches(self) -> list[list[int]]:
        count = len(self.lengths)
        if self.order == "sequential":
            drawn = list(range(count))
        else:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            drawn = torch.randperm(count, generator=generator).tolist()
        size = self.global_batch
        if self.order != "group_by_length":
            return [drawn[start : start + size] for start in range(0, count, size)]
        pool = POOL * size
        batches: list[list[int]] = []
        for start in range(0, count, pool):
            by_length = sorted(drawn[start : start + pool], key=lambda i: -self.lengths[i])
            batches += [by_length[at : at + size] for at in range(0, len(by_length), size)]
        partial = [batch for batch in batches if len(batch) < size]
        full = [batch for batch in batches if len(batch) == size]
        mixed = [full[i] for i in torch.randperm(len(full), generator=generator).tolist()]
        return mixed + partial


class EpochLoader(DataLoader[Any]):
    """A loader over `EpochBatches`; an EMPTY example is the first one of the data without its labels."""

    def __init__(self, dataset: Dataset[Any], batches: EpochBatches, **options: Any) -> None:
        super().__init__(_WithEmpty(dataset), batch_sampler=batches, **options)

    def set_epoch(self, epoch: int) -> None:
        """Trainer calls this at the beginning of each epoch."""
        batches = self.batch_sampler
        assert isinstance(batches, EpochBatches)
        batches.set_epoch(epoch)


class _WithEmpty(Dataset[Any]):
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if index != EpochBatches.EMPTY:
            return self.dataset[index]
        return {"input_ids": self.dataset[0]["input_ids"][:1], "labels": [-100], "position_ids": None, "empty": True}


class StreamLoader(DataLoader[Any]):
    """The micro-batches of one rank of a stream: every rank reads all of it, and takes its share of each global batch.

    So the global batches are the same on any number of ranks, and a part of a stream that was seen can be skipped.

    Args:
        rows: the endless examples, in the same order on every rank.
        global_batch, micro_batch, rank, world: as in `EpochBatches`.
    """

    def __init__(
        self, rows: Iterable[Any], *, global_batch: int, micro_batch: int, rank: int, world: int, collate_fn: Any
    ) -> None:
        share = _Share(rows, global_batch, micro_batch, rank, world)
        super().__init__(share, batch_size=None, collate_fn=collate_fn)


class _Share(IterableDataset[Any]):
    def __init__(self, rows: Iterable[Any], global_batch: int, micro_batch: int, rank: int, world: int) -> None:
        self.rows, self.global_batch, self.micro_batch = rows, global_batch, micro_batch
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[list[Any]]:
        rows = iter(self.rows)
        while len(batch := list(islice(rows, self.global_batch))) == self.global_batch:
            mine = batch[self.rank :: self.world]
            yield from (mine[start : start + self.micro_batch] for start in range(0, len(mine), self.micro_batch))
