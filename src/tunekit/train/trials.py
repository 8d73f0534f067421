"""Passes of the longest batches of which only is asked whether they fit into memory."""

from __future__ import annotations

import gc
import heapq
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tunekit.core.errors import out_of_memory
from tunekit.core.registry import METHODS
from tunekit.plan.plan import Plan
from tunekit.train.disk import optimizer_bytes

Where = Callable[[int], str]
SHORTEST = 8
"""The smallest `data.max_length`."""


class Longest:
    """The longest examples of a split, longest first; made-up ones for a stream.

    Args:
        rows: a data set with the column ``length``, or a stream.
        count: the most examples that will be taken.
        most: tokens of a made-up example.
        vocabulary: their ids are below it.
        apart: packed examples are among them, which are kept apart by a mask.
        made: of the trainer: what it makes of an example.
    """

    def __init__(
        self,
        rows: Any,
        count: int,
        *,
        most: int,
        vocabulary: int,
        apart: bool,
        made: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        self.made = made
        self.rows, self.tokens, self.vocabulary, self.apart = rows, most, vocabulary, apart
        self.order: list[int] | None = None
        if hasattr(rows, "__len__"):  # a stream has none
            lengths = rows["length"][:]
            self.order = heapq.nlargest(count, range(len(lengths)), key=lengths.__getitem__)
            self.tokens = _longest_sequence(self.made({**rows[self.order[0]]}))

    def where(self, where: Where) -> str:
        """The place of the longest row; of a packed one, the place of its first row."""
        if self.order is None:
            return "a row of data.max_length tokens"
        first, *others = self.rows[self.order[0]]["rows"]
        return where(first) + (f" and {len(others)} rows packed with it" if others else "")

    def among(self, count: int) -> int:
        """How many of ``count`` examples there are."""
        return count if self.order is None else min(count, len(self.order))

    def take(self, count: int, cut: int | None) -> list[Mapping[str, Any]]:
        """``count`` examples of at most ``cut`` tokens, of a group in each of its sequences; as they are when None."""
        if self.order is None:
            ids = [token % self.vocabulary for token in range(self.tokens)]
            examples = [{"input_ids": ids, "labels": ids, "position_ids": None}] * count
        else:
            examples = [self.rows[index] for index in self.order[:count]]
        return [self._shaped(example, cut) for example in examples]

    def _shaped(self, example: Mapping[str, Any], cut: int | None) -> dict[str, Any]:
        example = self.made({**example})
        if example.get("branches"):
            return example if cut is None else _cut_group(example, cut)
        ids, labels = example["input_ids"][:cut], example["labels"][:cut]
        positions = example["position_ids"]
        if self.apart and positions is None:  # a single long row needs no mask, but a batch beside packed rows does
            positions = [*range(len(ids) // 2), *range(len(ids) - len(ids) // 2)]
        return {"input_ids": ids, "labels": labels, "position_ids": positions and positions[:cut]}


def _longest_sequence(example: Mapping[str, Any]) -> int:
    """Tokens of an example; of a group those of its beginning with its longest answer."""
    sizes = example.get("branches") or [0]
    return int(len(example["input_ids"]) - sum(sizes) + max(sizes))


def _cut_group(example: dict[str, Any], cut: int) -> dict[str, Any]:
    """A group whose beginning and answers together have at most ``cut`` tokens for each of the answers."""
    ids, labels, sizes = example["input_ids"], example["labels"], example["branches"]
    beginning = len(ids) - sum(sizes)
    kept = min(beginning, max(1, cut // 2))
    found = {"input_ids": ids[:kept], "labels": labels[:kept], "position_ids": list(range(kept)), "branches": []}
    at = beginning
    for size in sizes:
        stay = min(size, max(1, cut - kept))
        found["input_ids"] = found["input_ids"] + ids[at : at + stay]
        found["labels"] = found["labels"] + labels[at : at + stay]
        found["position_ids"] = found["position_ids"] + list(range(kept, kept + stay))
        found["branches"] = [*found["branches"], stay]
        at += size
    numbers = {name: [0.0] * sum(found["branches"]) for name in example.get("numbers") or {}}
    more = {name: example[name] for name in ("score", "reference_logps", "index") if name in example}
    return found | more | ({"numbers": numbers} if numbers else {})


class Trials:
    """Forward and backward passes of which only is asked whether they fit."""

    def __init__(self, trainer: Any, plan: Plan, where: Where) -> None:
        self.trainer, self.plan, self.place = trainer, plan, where
        self.model, self.device = trainer.model, trainer.model.device
        self.on_cuda = self.device.type == "cuda"
        self.share = plan.micro_batch_size * plan.accumulation
        self.states = optimizer_bytes(self.model, plan.recipe.train.optimizer)
        data, batch = plan.recipe.data, plan.recipe.eval.batch_size
        vocabulary = self.model.config.get_text_config().vocab_size
        facts: dict[str, Any] = {"most": data.max_length, "vocabulary": vocabulary, "made": trainer.trial}
        apart = data.packing and METHODS.load(plan.method).ISOLATED
        self.train = Longest(trainer.train_dataset, self.share, **facts, apart=apart)
        held_out = trainer.eval_dataset
        self.held_out = None if held_out is None else Longest(held_out, batch, **facts, apart=False)
        self.free = 0

    def divisors(self) -> list[int]:
        """The micro-batches into which a process's share can be cut, largest first."""
        return [size for size in range(self.share, 0, -1) if self.share % size == 0]

    def reserve(self, size: int | None) -> int:
        """Bytes beside a pass: states that are not paged out, and the second copy of gradients that DDP sends."""
        held = 0 if self.on_cuda and self.plan.recipe.train.optimizer.startswith("paged") else self.states
        if size is not None and self.plan.processes > 1:
            held += sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
        return held

    def trains(self, size: int, *, cut: int | None = None, checkpointing: bool | None = None) -> bool:
        """Whether forward and backward of the ``size`` longest examples fit."""
        wanted = self.plan.recipe.train.gradient_checkpointing if checkpointing is None else checkpointing
        with self._checkpointing(wanted):
            return self._fits(lambda: self._pass(self.train.take(size, cut), size))

    def evaluates(self, size: int) -> bool:
        """Whether a forward pass of the ``size`` longest held-out rows fits."""
        held_out = self.held_out
        return held_out is None or self._fits(lambda: self._pass(held_out.take(size, None), None))

    def warm_up(self) -> None:
        """Starts threads and loads code now: under the limit these would fail without a word of memory."""
        import torch

        self._fits(lambda: self._pass(self.train.take(1, SHORTEST), None))
        torch.ones(1 << 16).add_(1)  # enough elements for all threads

    def _fits(self, attempt: Callable[[], None]) -> bool:
        try:
            attempt()
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            return False
        finally:
            self.clear()
        return True

    def _pass(self, examples: Sequence[Mapping[str, Any]], size: int | None) -> None:
        """A pass of training in micro-batches of ``size``, or of evaluation when that is None."""
        import torch

        training = size is not None
        self.model.train(training)
        held = torch.empty(self.reserve(size), dtype=torch.uint8, device=self.device)
        if size is not None and size < self.share:  # later micro-batches of a step add to gradients that are there
            for parameter in self.model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        inputs = {name: value.to(self.device) for name, value in self.trainer.data_collator(examples).items()}
        with torch.set_grad_enabled(training):
            with self.trainer.accelerator.autocast():
                loss = self.trainer.local_loss(self.model, inputs)
            if training:
                loss.backward()
        del held

    @contextmanager
    def _checkpointing(self, wanted: bool) -> Iterator[None]:
        if not wanted or self.model.is_gradient_checkpointing:
            yield
            return
        options = self.plan.recipe.train.extra.get("gradient_checkpointing_kwargs")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its new name does not exist in every 5.x
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
            try:
                yield
            finally:
                self.model.gradient_checkpointing_disable()

    def clear(self) -> None:
        """Drops gradients and whatever the last pass left."""
        import torch

        for parameter in self.model.parameters():
            parameter.grad = None
        gc.collect()
        if self.on_cuda:
            torch.cuda.empty_cache()
