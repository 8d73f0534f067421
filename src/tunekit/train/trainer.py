"""The mixin every method's trainer gets: guards, token counts, metrics that are never prettified, whole checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tunekit.core.registry import ADAPTERS
from tunekit.evaluate.run import evaluate_model
from tunekit.runs.metrics import MetricsWriter
from tunekit.train.batches import EpochBatches, EpochLoader, StreamLoader
from tunekit.train.callbacks import Keeper
from tunekit.train.finisher import Finisher
from tunekit.train.flops import step_flops
from tunekit.train.guards import Guarding
from tunekit.train.muon import muon_for
from tunekit.train.ranks import Ranks
from tunekit.train.signals import StopRequest
from tunekit.train.spikes import SpikeWatch
from tunekit.train.sums import Sums

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunekit.core.progress import Screen
    from tunekit.evaluate.contract import EvalItem, TaskResult
    from tunekit.plan.plan import Plan


class EvaluationCut(Exception):
    """The run was asked to stop in the middle of an evaluation."""


@dataclass(frozen=True)
class Share:
    """What a batch adds to a step: the sum of the losses of its items, how many these are, and the model's outputs."""

    total: torch.Tensor
    items: float
    outputs: Any = None


class TunekitTrainer(Guarding):
    """Mixed in before a Trainer class (``class CausalTrainer(TunekitTrainer, Trainer)``).

    Batches carry ``tokens``, the real tokens of each example (shape (B,)), and ``rows``, the ledger's numbers of its
    rows (shape (B, R), filled up with -1). They are counted and written down here, while they are on the CPU; the class
    keeps them from the model, and has ``local_share`` and ``positions_of``.
    """

    reported: frozenset[str] = frozenset()
    """Names of further values that a logged line may hold."""
    held_out_sums: Sums
    window = passes = 1
    """So many batches belong together, and are gone through so often (see `EpochBatches`)."""

    def attend(
        self,
        plan: Plan,
        checkpoint_facts: dict[str, Any],
        *,
        stop: StopRequest,
        where: Callable[[int], str],
        warn: Callable[[str], None],
        pulse: Callable[[str], None],
    ) -> None:
        """Tells the trainer about its run.

        Args:
            plan: the resolved plan.
            checkpoint_facts: what a checkpoint's manifest says of the run.
            stop: whether somebody asked the run to end.
            where: ``file:line`` of a ledger row.
            warn: shows the user a line.
            pulse: called at every batch: a sign of life.
        """
        self.plan, self.run_folder, self.checkpoint_facts = plan, Path(plan.run_dir), checkpoint_facts
        self.stop, self.where, self.warn, self.pulse = stop, where, warn, pulse
        self.ranks, self.spikes, self.finisher = Ranks(), SpikeWatch(), Finisher()
        block = plan.recipe.adapter_block
        self.adapter_kind = ADAPTERS.load(block.kind) if block is not None else None
        self.step_flops = step_flops(self.model)
        self.samples: MetricsWriter | None = None
        self.metrics: MetricsWriter | None = None
        self.skipped: set[int] = set()
        self.stopping = False
        self._window: list[dict[str, Any]] = []
        self._window_step = -1
        self._step_loss: Any = 0.0
        self.add_callback(Keeper(self))  # type: ignore[attr-defined]

    def trial(self, example: dict[str, Any]) -> dict[str, Any]:
        """An example of the data as training will see it, to try whether it fits into memory."""
        return example

    def ready(self, screen: Screen) -> None:
        """Called when model and adapter are as training will find them, before anything is trained or restored."""

    def measure(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        items: Sequence[EvalItem],
        screen: Screen,
        stop_ids: Sequence[int],
    ) -> list[TaskResult]:
        """What a model is found to be worth on the held-out rows, before training and after; on the main process.

        Args:
            model: without the wrapper of training.
            tokenizer: the model's.
            items: the held-out rows.
            screen: shows progress.
            stop_ids: of tokens that end an answer.
        """
        return evaluate_model(model, tokenizer, items, self.plan.recipe.eval, screen, stop_ids=stop_ids)

    def beside(self) -> dict[str, Any]:
        """What the record's evaluation says beside base and tuned model; on the main process, after `measure`."""
        return {}

    def local_loss(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The summed loss of a batch, see `local_share`."""
        share: Share = self.local_share(model, inputs)  # type: ignore[attr-defined]
        return share.total

    def further_loss(self) -> Any:
        """What a kind of adapter adds to the loss of a micro-batch, or None."""
        added = getattr(self.adapter_kind, "further_loss", None)
        return added(self.model) if added else None

    def after_step(self) -> None:
        """Called after the optimizer's step, before gradients are cleared: some kinds of adapter move their parts."""
        moved = getattr(self.adapter_kind, "after_step", None)
        if moved and self.state.global_step + 1 not in self.skipped:  # such a step has no gradients
            moved(self.model, self.state.global_step)

    @property
    def saves(self) -> bool:
        """Whether this run writes checkpoints."""
        return self.plan.recipe.train.save_every != "never"

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's optimizer, over the adapter's own groups if it has any; or Muon, which Trainer does not know."""
        grouped = getattr(self.adapter_kind, "parameter_groups", None)
        train = self.plan.recipe.train
        groups = (
            grouped(self.model, self.plan.recipe.adapter_block, train.learning_rate, train.weight_decay)
            if grouped
            else []
        )
        if groups and self.optimizer is None:
            made, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)  # type: ignore[attr-defined]
            self.optimizer = made(groups, **options)
        if self.plan.recipe.train.optimizer == "muon" and self.optimizer is None:
            self.optimizer = muon_for(
                self.model,
                lr=train.learning_rate,
                weight_decay=train.weight_decay,
                betas=(train.adam_beta1, train.adam_beta2),
                eps=train.adam_epsilon,
            )
        return super().create_optimizer(*args, **kwargs)  # type: ignore[misc]

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass; a step that a rollback leaves out passes by without either."""
        if self._window_step != self.state.global_step:
            self._window, self._window_step, self._step_loss = [], self.state.global_step, 0.0
        self._window.append(inputs)
        self.pulse(f"training, step {self.state.global_step + 1}")
        if self.state.global_step + 1 in self.skipped:
            return torch.zeros((), device=self.args.device)
        self.tokens_seen += int(inputs["tokens"].sum())
        self.trained_seen += int((inputs["labels"] >= 0).sum())
        self.positions_seen += self.positions_of(inputs)  # type: ignore[attr-defined]
        self.flops_seen += self.step_flops.of(inputs)
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        self._step_loss = self._step_loss + loss
        return loss

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Trainer looks for the end only after a step; a run that goes on from its end must not make one more."""
        if self.already_ended or self.control.should_training_stop or not self._before_the_end:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    def get_train_dataloader(self) -> Any:
        """Batches that depend on seed and epoch alone; those of a stream on its order."""
        rows, args = self.train_dataset, self.args  # type: ignore[attr-defined]
        accelerator = self.accelerator  # type: ignore[attr-defined]
        micro, world = args.per_device_train_batch_size, accelerator.num_processes
        share = {
            "global_batch": micro * world * args.gradient_accumulation_steps,
            "micro_batch": micro,
            "rank": accelerator.process_index,
            "world": world,
        }
        if not hasattr(rows, "__len__"):
            return StreamLoader(rows, collate_fn=self.data_collator, **share)  # type: ignore[attr-defined]
        order, seed = args.train_sampling_strategy, args.data_seed
        batches = EpochBatches(
            rows["length"][:], **share, order=order, seed=seed, window=self.window, passes=self.passes
        )
        workers = args.dataloader_num_workers
        return EpochLoader(
            rows,
            batches,
            collate_fn=self.data_collator,  # type: ignore[attr-defined]
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=args.dataloader_pin_memory,
        )

    def write_samples(self) -> None:
        """Writes down which rows the step that just ended saw on this rank."""
        if self.samples is None:
            return
        step = self.state.global_step
        rows = [[n for n in example if n >= 0] for inputs in self._window for example in inputs["rows"].tolist()]
        line: dict[str, Any] = {"step": step, "rows": [example for example in rows if example]}
        self.samples.write(line | ({"skipped": True} if step in self.skipped else {}))

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: nn.Module, *args: Any, **kwargs: Any
    ) -> None:
        """Trainer's; an evaluation that is cut short by a wish to stop is left for the run that goes on."""
        control = self.control
        if control.should_log or control.should_evaluate or control.should_save or control.should_training_stop:
            self.settle()
        try:
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, *args, **kwargs)  # type: ignore[misc]
        except EvaluationCut:
            self.pending_evaluation, self.stopping = True, True
            self.control.should_evaluate = self.control.should_save = False
            self.control.should_training_stop = True
            if self.saves:
                self._save_checkpoint(model, None)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """What `evaluation` finds on the held-out rows, logged."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset  # type: ignore[attr-defined]
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.evaluation(rows).items()}
        self.log(metrics)  # type: ignore[attr-defined]
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[attr-defined]
        return metrics

    def evaluation(self, rows: Any) -> dict[str, float]:
        """``loss``: the mean over all items of the held-out rows, whatever the batches and the number of ranks.

        Items are what a mean of training is one of: trained tokens, or pairs. Each rank takes every world-size-th row,
        so none is seen twice; Trainer's own loop averages batch means.
        """
        accelerator, size = self.accelerator, self.args.per_device_eval_batch_size  # type: ignore[attr-defined]
        batches = EpochBatches(
            rows["length"][:],
            global_batch=size * accelerator.num_processes,
            micro_batch=size,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            order="sequential",
            seed=0,
        )
        model = accelerator.unwrap_model(self.model)
        model.eval()
        self.held_out_sums.values = {}  # one that was cut short may have left something
        total = [0.0, 0.0]
        own = (
            torch.Generator()
        )  # a loader draws a number: an evaluation that is made up for later must not shift training's
        with torch.no_grad():
            for batch in EpochLoader(rows, batches, collate_fn=self.data_collator, generator=own):  # type: ignore[attr-defined]
                self.pulse(f"evaluating, step {self.state.global_step}")
                if self.ranks.sum([self.stop.signum is not None])[0]:
                    model.train()
                    raise EvaluationCut
                share = self.local_share(model, batch)  # type: ignore[attr-defined]
                total[0] += float(share.total)
                total[1] += share.items
        total = self.ranks.sum(total)
        model.train()
        return {"loss": total[0] / total[1]} | self.held_out_sums.means(self.ranks)
