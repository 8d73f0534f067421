"""The mixin every method's trainer gets: guards, token counts, metrics that are never prettified, whole checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunekit.core.errors import DivergedError
from tunekit.train.batches import EpochBatches, EpochLoader
from tunekit.train.checkpoint import put_in_place, rotate
from tunekit.train.muon import muon_for

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tunekit.plan.plan import Plan

Report = Callable[[dict[str, Any]], None]


class TunekitTrainer:
    """Mixed in before a Trainer class (``class Sft(TunekitTrainer, SFTTrainer)``).

    Batches carry ``tokens``, the real tokens of each example (shape (B,)), which are counted and kept from the model.
    """

    run_folder: Path
    plan: Plan
    optimizer: torch.optim.Optimizer | None
    checkpoint_facts: dict[str, Any]
    state: TrainerState
    control: TrainerControl
    args: TrainingArguments
    model: nn.Module

    def attend(self, plan: Plan, checkpoint_facts: dict[str, Any]) -> None:
        """Tells the trainer its plan, and what a checkpoint's manifest says of it."""
        self.plan, self.run_folder, self.checkpoint_facts = plan, Path(plan.run_dir), checkpoint_facts

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's optimizer, or Muon, which Trainer does not know."""
        if self.plan.recipe.train.optimizer == "muon" and self.optimizer is None:
            train = self.plan.recipe.train
            self.optimizer = muon_for(
                self.model,
                lr=train.learning_rate,
                weight_decay=train.weight_decay,
                betas=(train.adam_beta1, train.adam_beta2),
                eps=train.adam_epsilon,
            )
        return super().create_optimizer(*args, **kwargs)  # type: ignore[misc]

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of a batch; its tokens are counted and the counter's column is taken out."""
        tokens, labels = inputs.pop("tokens", None), inputs.get("labels")
        if model.training and tokens is not None and labels is not None:
            # Sums stay on the device: reading them here would make every step wait for the GPU.
            self.tokens_seen = getattr(self, "tokens_seen", 0) + tokens.sum()
            self.trained_seen = getattr(self, "trained_seen", 0) + (labels >= 0).sum()
        return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass.

        Raises:
            DivergedError: the loss is not finite; the optimizer has not stepped.
        """
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if not loss.isfinite().all():
            raise DivergedError(
                f"the loss of step {self.state.global_step + 1} is {loss.item()}",
                where=f"step {self.state.global_step + 1}",
                fix="lower train.learning_rate, or use precision: bf16 or fp32; checkpoints before this step are whole",
            )
        return loss

    def get_train_dataloader(self) -> Any:
        """Batches that depend on seed and epoch alone; a stream keeps Trainer's own loader."""
        rows, args = self.train_dataset, self.args  # type: ignore[attr-defined]
        if not hasattr(rows, "__len__"):
            return super().get_train_dataloader()  # type: ignore[misc]
        accelerator = self.accelerator  # type: ignore[attr-defined]
        micro, world = args.per_device_train_batch_size, accelerator.num_processes
        batches = EpochBatches(
            rows["length"][:],
            global_batch=micro * world * args.gradient_accumulation_steps,
            micro_batch=micro,
            rank=accelerator.process_index,
            world=world,
            order=args.train_sampling_strategy,
            seed=args.data_seed,
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

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient norm before clipping.

        Raises:
            DivergedError: it is not finite; the optimizer has not stepped.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        scaler = self.accelerator.scaler  # type: ignore[attr-defined]
        searching = scaler is not None and scaler.get_scale() > 1  # fp16: it skips this step and halves its scale
        if norm is not None and not math.isfinite(norm) and not searching:
            raise DivergedError(
                f"the gradient norm of step {self.state.global_step + 1} is {float(norm)}",
                where=f"step {self.state.global_step + 1}",
                fix="lower train.learning_rate, or use precision: bf16 or fp32; checkpoints before this step are whole",
            )
        return norm

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The mean loss over all trained tokens of the held-out rows, whatever the batches and the number of ranks.

        Each rank takes every world-size-th row, so none is seen twice; Trainer's own loop averages batch means. All
        ranks see equally many batches, fillers among them: TRL gathers its metrics in each.
        """
        import torch

        rows = self.eval_dataset if eval_dataset is None else eval_dataset  # type: ignore[attr-defined]
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
        total = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for batch in EpochLoader(rows, batches, collate_fn=self.data_collator):  # type: ignore[attr-defined]
                inputs = self._prepare_inputs(batch)  # type: ignore[attr-defined]
                count = int((inputs["labels"][:, 1:] >= 0).sum())
                loss = float(self.compute_loss(model, inputs))
                total += torch.tensor([loss * count if count else 0.0, count], dtype=torch.float64)
        total = accelerator.reduce(total.to(accelerator.device), "sum")
        metrics = {f"{metric_key_prefix}_loss": float(total[0] / total[1])}
        self.log(metrics)  # type: ignore[attr-defined]
        model.train()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[attr-defined]
        return metrics

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes a checkpoint into the staging folder, then puts it in place as a whole."""
        from transformers import Trainer

        staged = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        Trainer._save_checkpoint(self, model, trial)  # type: ignore[arg-type]
        if not self.args.should_save:
            return
        final = put_in_place(staged, self.run_folder / "checkpoints", self.state.global_step, self.checkpoint_facts)
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(final)
        best = self.state.best_model_checkpoint
        keep = self.plan.recipe.train.keep_checkpoints
        rotate(self.run_folder / "checkpoints", keep, Path(best) if best else None)


class Reporter(TrainerCallback):
    """Hands every logged value on, with the rates since the last log, on the main process only."""

    def __init__(self, trainer: TunekitTrainer, report: Report, advance: Callable[[], None]) -> None:
        self.trainer, self.report, self.advance = trainer, report, advance
        self.started = self.last = time.perf_counter()
        self.tokens = self.trained = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Starts the clock."""
        self.started = self.last = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Moves the bar."""
        self.advance()

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
        values |= {name: value for name, value in logs.items() if name in _REPORTED}
        if "loss" in logs:
            values |= self._rates(args.world_size, now)
        if "loss" in values or "eval_loss" in values:
            values["seconds"] = round(now - self.started, 3)
            self.report(values)

    def _rates(self, world: int, now: float) -> dict[str, Any]:
        tokens, trained = int(getattr(self.trainer, "tokens_seen", 0)), int(getattr(self.trainer, "trained_seen", 0))
        elapsed = max(now - self.last, 1e-9)
        rates = {
            "tokens_per_second": round((tokens - self.tokens) * world / elapsed, 1),
            "trained_tokens_per_second": round((trained - self.trained) * world / elapsed, 1),
            "memory_gb": round(memory_bytes() / 1e9, 3),
        }
        self.last, self.tokens, self.trained = now, tokens, trained
        return rates


_REPORTED = frozenset({"loss", "eval_loss", "learning_rate", "grad_norm", "mean_token_accuracy", "entropy"})


def memory_bytes() -> int:
    """Peak memory of this process in bytes: the GPU's when there is one, else the resident set."""
    import resource

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
