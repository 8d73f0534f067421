"""Callbacks that join a trainer to the run: what is logged is reported, and asked-for ends are kept in good order."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunekit.train.tally import shares

if TYPE_CHECKING:
    from tunekit.train.trainer import TunekitTrainer

Report = Callable[[dict[str, Any]], None]
_REPORTED = frozenset({"loss", "eval_loss", "learning_rate", "grad_norm", "mean_token_accuracy"})


class Keeper(TrainerCallback):
    """Begins from the checkpoint's state, writes down which rows each step saw, and ends when asked to."""

    def __init__(self, trainer: TunekitTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Takes up what the checkpoint remembers."""
        self.trainer.begin()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Lets the adapter move its parts."""
        self.trainer.after_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After Trainer's own choices for this step: an end that was asked for comes before an evaluation."""
        trainer = self.trainer
        trainer.write_samples()
        trainer.finisher.look()
        if trainer.stop.signum is not None and not trainer.ranks.many:  # several ranks have to agree first
            trainer.stopping = True
        if trainer.stopping:
            trainer.pending_evaluation = control.should_evaluate
            control.should_evaluate = False
            control.should_save = trainer.saves
            control.should_training_stop = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Early stopping ends the run here: with a checkpoint, so that the end can be gone on from."""
        if control.should_training_stop:
            control.should_save = self.trainer.saves


class Reporter(TrainerCallback):
    """Hands every logged value on, with the rates since the last log, on the main process only."""

    def __init__(self, trainer: TunekitTrainer, report: Report, show: Callable[[int], None]) -> None:
        self.trainer, self.report, self.show = trainer, report, show
        self.last = time.perf_counter()
        self.tokens = self.trained = self.flops = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Starts the clock; steps that a checkpoint brings are done."""
        self.last = time.perf_counter()
        self._count()
        self.show(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Moves the bar."""
        self.show(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Reports one line of values."""
        if not state.is_world_process_zero or not logs:
            return
        now = time.perf_counter()
        values = {"step": state.global_step, "total_steps": state.max_steps, "epoch": state.epoch or 0.0}
        known = _REPORTED | self.trainer.reported | {f"eval_{name}" for name in self.trainer.reported}
        values |= {name: value for name, value in logs.items() if name in known}
        if "loss" in logs:
            values |= self._rates(args.world_size, now)
        if "loss" in values or "eval_loss" in values:
            values["seconds"] = round(self.trainer.seconds_before + now - self.trainer.training_since, 3)
            self.report(values)

    def _rates(self, world: int, now: float) -> dict[str, Any]:
        """Of this rank, as if all others were the same: to ask them would hold each of them up."""
        trainer, elapsed = self.trainer, max(now - self.last, 1e-9)
        tokens, trained, flops = self.tokens, self.trained, self.flops
        self.last = now
        self._count()
        rates = {
            "tokens_per_second": round((self.tokens - tokens) * world / elapsed, 1),
            "trained_tokens_per_second": round((self.trained - trained) * world / elapsed, 1),
        }
        if trainer.ceiling:
            rates["mfu"] = round((self.flops - flops) * world / elapsed / trainer.ceiling, 4)
        counts = (trainer.tokens_seen, trainer.trained_seen, trainer.positions_seen)
        rates |= shares(*(after - before for after, before in zip(counts, trainer.logged_counts, strict=True)))
        trainer.logged_counts = counts
        return rates | {"memory_gb": round(memory_bytes() / 1e9, 3)}

    def _count(self) -> None:
        trainer = self.trainer
        self.tokens, self.trained, self.flops = trainer.tokens_seen, trainer.trained_seen, trainer.flops_seen


def memory_bytes() -> int:
    """Peak memory of this process in bytes: the GPU's when there is one, else the resident set."""
    import resource

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
