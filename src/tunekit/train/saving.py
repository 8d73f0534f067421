"""How a trainer writes checkpoints and goes on from one: the same for every method."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

from tunekit.core.errors import DivergedError, MachineError, TunekitError
from tunekit.model.adapt import restore_trained, trained_state
from tunekit.model.starts import convert
from tunekit.runs.layout import checkpoint_name
from tunekit.runs.metrics import MetricsWriter
from tunekit.train.checkpoint import Damaged, put_in_place, rotate, verify
from tunekit.train.disk import checkpoint_bytes, require_space
from tunekit.train.explained import explained
from tunekit.train.finisher import Finisher
from tunekit.train.ranks import Ranks
from tunekit.train.rankstate import RankState
from tunekit.train.spikes import SpikeWatch

if TYPE_CHECKING:
    from tunekit.plan.plan import Plan

TRAINED = "trained.safetensors"
"""What is trained of a model with an adapter, by the names of the model's parameters."""


class Saving:
    """Mixed in before a Trainer class; `train.trainer.TunekitTrainer` brings what is named here."""

    plan: Plan
    ranks: Ranks
    run_folder: Path
    checkpoint_facts: dict[str, Any]
    finisher: Finisher
    samples: MetricsWriter | None
    metrics: MetricsWriter | None
    spikes: SpikeWatch
    skipped: set[int]
    stopping: bool
    state: TrainerState
    control: TrainerControl
    args: TrainingArguments
    model: nn.Module
    optimizer: Any
    lr_scheduler: Any
    _tr_loss: torch.Tensor

    initial: Mapping[str, torch.Tensor] = MappingProxyType({})
    """Of `starts.initial_state`."""
    adapter_kind: Any
    """The adapter's plug-in, or None."""
    tokens_seen = 0
    trained_seen = 0
    positions_seen = 0
    padded_because = ""
    flops_seen = 0
    logged_counts = (0, 0, 0)
    """Tokens, trained tokens and positions at the last logged step."""
    ceiling: float | None = None
    """FLOP/s of matrix products of all processes together, where it was measured."""
    pending_evaluation = False
    already_ended = False
    seconds_before = 0.0
    resumed_from: Path | None = None
    training_since = 0.0

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes a checkpoint into the staging folder; it is put in place beside the training that goes on.

        Training waits for the bytes to be written, as with Trainer's own; not for the disk to have them, nor for their
        hashes. Only one checkpoint is under way: the next one, and the end, wait for it.

        Raises:
            MachineError: the disk is full or does not take it; the checkpoints before are whole.
            DivergedError: a weight is not finite; nothing was written.
        """
        step, main = self.state.global_step, self.args.should_save
        self._refuse_broken_weights(step)
        self.finisher.wait()
        staged = Path(str(self.args.output_dir)) / checkpoint_name(step)
        needed = checkpoint_bytes(self.model, self.plan)
        with explained(staged, needed):
            if main:
                require_space(self.run_folder, needed, "a checkpoint")
                shutil.rmtree(staged, ignore_errors=True)
                staged.mkdir(parents=True)
            self.ranks.wait()
            self._write(staged)
            self.ranks.wait()
            if main:
                self.state.best_model_checkpoint = None  # a path; `begin` finds it again from the step
                self.state.save_to_json(str(staged / "trainer_state.json"))
        best = self._find_best()
        if main:
            self.finisher.start(lambda: self._finish(staged, step, best, needed))

    def _finish(self, staged: Path, step: int, best: Path | None, needed: int) -> None:
        """Puts a written checkpoint in place and deletes those that are too many."""
        folder = self.run_folder / "checkpoints"
        with explained(staged, needed):
            for journal in (self.samples, self.metrics):
                if journal is not None:
                    journal.sync()  # what is told of the steps before the checkpoint is as safe as it is
            put_in_place(staged, folder, step, self.checkpoint_facts)
            rotate(folder, self.plan.recipe.train.keep_checkpoints, best)

    def _refuse_broken_weights(self, step: int) -> None:
        trained = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        if torch.isfinite(torch.nn.utils.get_total_norm(trained.values())):  # one pass over all
            return
        for name, parameter in trained.items():
            if not torch.isfinite(parameter).all():
                raise DivergedError(
                    f"after step {step} the weight '{name}' is not finite; no checkpoint is made of it",
                    where=f"step {step}",
                    fix="lower train.learning_rate, and go on from the last checkpoint with `tunekit resume`",
                )

    def _write(self, staged: Path) -> None:
        """Every rank writes what is its own; the main process what all share."""
        if self.args.should_save:
            self.model.save_pretrained(staged)  # type: ignore[operator]
            if isinstance(self.model, PeftModel):
                (staged / "README.md").unlink(missing_ok=True)  # PEFT's card names the place of the base here
                convert(staged, self.initial)
                save_file(trained_state(self.model, self.adapter_kind), staged / TRAINED)
            self.processing_class.save_pretrained(staged)  # type: ignore[attr-defined]
            (staged / "plan.json").write_text(self.plan.model_dump_json(indent=2), encoding="utf-8")
            self.write_method(staged)
        self._save_optimizer_and_scheduler(str(staged))  # type: ignore[attr-defined]
        self._save_scaler(str(staged))  # type: ignore[attr-defined]
        self._save_rng_state(str(staged))  # type: ignore[attr-defined]
        self.rank_state().save(staged, self.args.process_index)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Trainer's; of an adapter everything that was trained, which is more than some kinds save."""
        if isinstance(self.model, PeftModel):
            restore_trained(self.model, load_file(Path(resume_from_checkpoint) / TRAINED), self.adapter_kind)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def rank_state(self) -> RankState:
        """What this rank has to remember."""
        return RankState(
            loss_sum=float(self._tr_loss),
            last_logged=self._globalstep_last_logged,  # type: ignore[attr-defined]
            total_loss=self._total_loss_scalar,  # type: ignore[attr-defined]
            tokens=self.tokens_seen,
            trained=self.trained_seen,
            positions=self.positions_seen,
            flops=self.flops_seen,
            logged=list(self.logged_counts),
            seconds=self.seconds_before + time.perf_counter() - self.training_since,
            ended=self.control.should_training_stop and not self.stopping and self._before_the_end,
            pending_evaluation=self.pending_evaluation,
            patience=max((callback.early_stopping_patience_counter for callback in self._stoppers()), default=0),
            skipped=sorted(self.skipped),
            spikes=self.spikes.state(),
            method=self.method_state(),
        )

    def method_state(self) -> dict[str, Any]:
        """Plain values that a method's trainer adds to every checkpoint; `restore_method_state` takes them back."""
        return {}

    def restore_method_state(self, state: dict[str, Any]) -> None:
        """Takes back what `method_state` gave."""

    def write_method(self, folder: Path) -> None:
        """Files that a method's trainer adds to every checkpoint, on the main process; `read_method` reads them."""

    def read_method(self, folder: Path) -> None:
        """Takes back what `write_method` wrote, on every rank."""

    @property
    def _before_the_end(self) -> bool:
        return bool(self.state.global_step < self.state.max_steps)

    def _stoppers(self) -> list[EarlyStoppingCallback]:
        callbacks = self.callback_handler.callbacks  # type: ignore[attr-defined]
        return [callback for callback in callbacks if isinstance(callback, EarlyStoppingCallback)]

    def _find_best(self) -> Path | None:
        """The best checkpoint, if there is one; the one of this step may be on its way to its place."""
        step = self.state.best_global_step
        best = self.run_folder / "checkpoints" / checkpoint_name(step or 0)
        there = bool(step) and (step == self.state.global_step or best.is_dir())
        self.state.best_model_checkpoint = str(best) if there else None
        return best if there else None

    def _load_best_model(self) -> None:
        """Trainer's, after the best checkpoint was compared with its manifest.

        Raises:
            MachineError: it is damaged; the last checkpoint is not touched.
        """
        self.finisher.wait()
        self.ranks.wait()  # only the main process knows that it is in place
        best = Path(str(self.state.best_model_checkpoint))
        try:
            verify(best)
        except Damaged as why:
            raise MachineError(
                f"the best checkpoint is not what was written: {why}",
                where=str(best),
                fix="finish with the last one: `--set train.keep_best=false --allow-change train.keep_best`",
            ) from why
        if isinstance(self.model, PeftModel):
            restore_trained(self.model, load_file(best / TRAINED), self.adapter_kind)
        else:
            super()._load_best_model()  # type: ignore[misc]

    def begin(self) -> None:
        """Called when training begins: takes up what the checkpoint remembers, if it goes on from one."""
        self.training_since = time.perf_counter()
        # the checkpoint's state carries its own intervals; those of the plan hold
        self.state.compute_steps(self.args, self.state.max_steps)
        if self.resumed_from is None:
            return
        kept = RankState.load(self.resumed_from, self.args.process_index)
        self._tr_loss += kept.loss_sum
        self._globalstep_last_logged, self._total_loss_scalar = kept.last_logged, kept.total_loss
        self.tokens_seen, self.trained_seen, self.positions_seen = kept.tokens, kept.trained, kept.positions
        self.flops_seen, self.logged_counts = kept.flops, (kept.logged[0], kept.logged[1], kept.logged[2])
        self.seconds_before = kept.seconds
        self.already_ended = kept.ended
        self.skipped |= set(kept.skipped)
        if kept.spikes is not None:
            self.spikes = SpikeWatch.restore(kept.spikes)
        for callback in self._stoppers():
            callback.early_stopping_patience_counter = kept.patience
        self.restore_method_state(kept.method)
        self.read_method(self.resumed_from)
        best = self._find_best()
        if self.args.should_save:  # the run may have been cut off before it deleted the one that was too many
            rotate(self.run_folder / "checkpoints", self.plan.recipe.train.keep_checkpoints, best)
        if kept.pending_evaluation:
            self._evaluate_now()

    def _evaluate_now(self) -> None:
        """The evaluation that was due when the run was asked to stop."""
        self.control.should_evaluate = True
        self._maybe_log_save_evaluate(self._tr_loss, None, self.model, None, 0, None, time.time())  # type: ignore[attr-defined]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The checkpoint's states, with the plan's hyperparameters: a new learning rate is used, not overwritten."""
        if checkpoint is None:
            return
        fresh = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        base = list(self.lr_scheduler.base_lrs)
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        scheduler = self.lr_scheduler
        scheduler.base_lrs = base
        rates = [rate * shape(scheduler.last_epoch) for rate, shape in zip(base, scheduler.lr_lambdas, strict=True)]
        scheduler._last_lr = rates
        for group, values, rate in zip(self.optimizer.param_groups, fresh, rates, strict=True):
            group.update(values | {"lr": rate})

    def train_from(self, checkpoint: Path | None) -> Any:
        """`Trainer.train`, from the beginning or from a checkpoint that has been verified."""
        self.resumed_from = checkpoint
        try:
            result = self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)  # type: ignore[attr-defined]
        except BaseException as error:
            try:
                self.finisher.wait()
            except TunekitError as other:
                error.add_note(f"and a checkpoint could not be put in place: {other}")
            raise
        self.finisher.wait()
        return result
