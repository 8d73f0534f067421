"""Why a loss or gradient is not finite: the weight that was broken before, the module that breaks, the rows that do it.

Nothing here speaks to other ranks: `torch.autograd.grad` leaves out the hooks by which their gradients are summed.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import Problem
from tunekit.evaluate.mode import evaluating, plain_model
from tunekit.train.trace import Trace, is_finite, shown_name

if TYPE_CHECKING:
    import torch
    from torch import nn

PASSES, SECONDS = 200, 120.0
"""The search for rows ends after so many forward passes or seconds: other ranks wait for it."""
PROBED = 16
"""When so many examples fail, each by itself, all do: a fault in half of the rows looks so once in 65,000 times."""
NAMED = 8
"""So many culprits are named; others are counted."""


@dataclass(frozen=True)
class Cause:
    """What was found.

    ``parameter`` is the first whose values are not finite: the weights were broken before this step. ``tokens`` have
    such an embedding, and are read ``texts``; there are none when all have. ``module`` is the first that made something
    not finite out of finite inputs; ``backward``: that passed back such a gradient. Of ``gradient``, the first in
    backward order, the gradient is not finite though the loss is. ``rows`` do it (``file:line``), or ``all_rows``, and
    the model is at fault; ``culprits`` tells in a sentence of each smallest set of rows; ``more`` were not looked into.
    """

    parameter: str | None = None
    tokens: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    module: str | None = None
    backward: bool = False
    gradient: str | None = None
    rows: tuple[str, ...] = ()
    culprits: tuple[str, ...] = ()
    more: int = 0
    all_rows: bool = False
    came_again: bool = True
    cut_short: str = ""

    def problems(self) -> list[Problem]:
        """The lines of an error, what lies deepest first."""
        return [Problem(words) for words in self._words()]

    def summary(self) -> str:
        """All of it in one line."""
        return "; ".join(self._words())

    def _words(self) -> Iterator[str]:
        if self.parameter:
            yield f"the weights were broken before this step: not all values of {self.parameter} are finite"
        if self.tokens:
            shown = [f"{number} ({text!r})" for number, text in zip(self.tokens, self.texts, strict=True)]
            yield f"the embedding of token {_listed(shown)} is not finite"
        if self.module:
            what = "module that passes back a gradient" if self.backward else "module with an output"
            yield f"the first {what} that is not finite is {self.module}"
        if self.gradient:
            yield f"the first parameter with a gradient that is not finite is {self.gradient}"
        if self.all_rows:
            yield "every row that was tried fails by itself: the model is at fault, not the data"
        yield from self.culprits
        if self.more:
            yield f"there are at least {self.more:,} more among the other rows of the step"
        if self.cut_short:
            yield f"the search for rows ended early: {self.cut_short}"
        elif not self.came_again:
            yield "it did not come again when the same rows were run once more"


def find_cause(trainer: Any, batches: Sequence[dict[str, torch.Tensor]], where: Callable[[int], str]) -> Cause:
    """Looks for the cause of a loss or gradient that is not finite; gradients are cleared, all else is left as it was.

    Args:
        trainer: has ``local_loss``, ``accelerator``, ``model`` and ``processing_class`` (`CausalTrainer`).
        batches: the collator's micro-batches of the failing step, as this rank saw them.
        where: ``file:line`` of a row of the ledger.
    """
    return _Search(trainer, batches, where).run()


class _Search:
    def __init__(self, trainer: Any, batches: Sequence[dict[str, torch.Tensor]], where: Callable[[int], str]) -> None:
        self.trainer, self.where = trainer, where
        real = [(batch, batch["tokens"] > 0) for batch in batches]  # a filler only fails with the model
        self.batches = [{name: value[kept] for name, value in batch.items()} for batch, kept in real if kept.any()]
        self.model: nn.Module = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        # The step's mean, as in training: a sum may overflow where the mean does not.
        self.labels = max(1, sum(int((batch["labels"][:, 1:] >= 0).sum()) for batch in batches))
        self.ends = time.monotonic() + SECONDS
        self.known: dict[tuple[int, ...], str] = {}  # (batch, first example, last + 1): its fault
        self.rows: list[str] = []
        self.culprits: list[str] = []
        self.more, self.all_rows, self.cut_short = 0, False, ""
        self.lossy = False  # what is not finite is the loss, not a gradient alone

    def run(self) -> Cause:
        import torch

        trace = Trace(self.model)
        try:
            self._look_for_rows()
            for part in sorted((part for part, fault in self.known.items() if fault), key=lambda p: p[2] - p[1])[:1]:
                self._run(*part, trace=trace)
        except RuntimeError as error:  # out of memory, or a model that lets nobody watch it: the fault is told still
            self.cut_short = str(error).partition("\n")[0]
        table = plain_model(self.model).get_input_embeddings().weight.detach()
        whole = torch.stack(table.aminmax(dim=1)).isfinite().all(dim=0)  # (V,)
        tokens = (~whole).nonzero().flatten().tolist() if whole.any() else []
        return Cause(
            parameter=next((shown_name(n) for n, value in self.model.named_parameters() if not is_finite(value)), None),
            tokens=tuple(tokens),
            texts=tuple(map(str, self.trainer.processing_class.convert_ids_to_tokens(tokens))),
            module=trace.module() or (trace.head if self.lossy and not trace.spoilt else None),
            backward=bool(trace.spoilt) and trace.first("made") is None,
            gradient=trace.first("gradient"),
            rows=tuple(self.rows),
            culprits=tuple(self.culprits),
            more=self.more,
            all_rows=self.all_rows,
            came_again=any(self.known.values()),
            cut_short=self.cut_short,
        )

    def _look_for_rows(self) -> None:
        rows = sorted((at, i) for i, batch in enumerate(self.batches) for at in range(len(batch["rows"])))
        try:
            self.all_rows = len(rows) > 1 and all(self._fails(index, at, at + 1) for at, index in rows[:PROBED])
            for index, batch in enumerate(self.batches):
                if not self.all_rows and self._fails(index, 0, len(batch["rows"])):
                    self._split(index, 0, len(batch["rows"]), "makes" if len(rows) == 1 else "alone makes")
        except TimeoutError:
            self.cut_short = f"after {len(self.known)} forward passes"

    def _split(self, index: int, start: int, end: int, makes: str) -> None:
        """Halves examples that fail together, until one is left or neither half fails."""
        if len(self.culprits) == NAMED:
            self.more += 1
            return
        middle = (start + end) // 2
        halves = ((start, middle), (middle, end)) if end - start > 1 else ()
        failing = [half for half in halves if self._fails(index, *half)]
        for half in failing:
            self._split(index, *half, makes)
        if not failing:
            rows = [self.where(n) for n in self.batches[index]["rows"][start:end].flatten().tolist() if n >= 0]
            fault = self.known[index, start, end]
            words = f"row {_listed(rows)} {makes} {fault}"
            if end - start > 1:
                words = f"rows {_listed(rows)} make {fault} together, but neither half of them does"
            elif len(rows) > 1:
                words = f"one of these rows, packed into one example, {makes} {fault}: {_listed(rows)}"
            self.rows += rows
            self.culprits.append(words)

    def _fails(self, *part: int) -> bool:
        if part not in self.known:
            if len(self.known) >= PASSES or time.monotonic() > self.ends:
                raise TimeoutError
            self.known[part] = self._run(*part)
        return bool(self.known[part])

    def _run(self, index: int, start: int, end: int, *, trace: Trace | None = None) -> str:
        """A forward and backward pass of some examples; says what is not finite, or nothing."""
        import torch

        device, batch = self.trainer.accelerator.device, self.batches[index]
        inputs = {name: value[start:end].to(device) for name, value in batch.items()}
        weights = [value for value in self.model.parameters() if value.requires_grad]
        with _left_as_it_was(self.model), ExitStack() as stack:
            if trace:
                trace.watch(stack)
            loss = self.trainer.local_loss(self.model, inputs) / self.labels
            if not loss.isfinite():
                self.lossy = True
                return f"the loss {loss.item()}"
            found = torch.autograd.grad(loss, weights, allow_unused=True) if loss.requires_grad else ()
            norm = float(torch.nn.utils.get_total_norm([gradient for gradient in found if gradient is not None]))
            return "" if math.isfinite(norm) else f"the gradient norm {norm}"


def _listed(names: Sequence[str]) -> str:
    listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")
    return listed or "without a number"


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """The model trains within; then random numbers, modes and buffers are put back, and gradients cleared."""
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    model.zero_grad(set_to_none=True)
    try:
        with evaluating(model), torch.enable_grad():  # it keeps modes and torch's random numbers
            model.train()
            yield
    finally:
        for buffer, value in buffers:
            buffer.detach().copy_(value)
        random.setstate(python)
        np.random.set_state(numpy)
