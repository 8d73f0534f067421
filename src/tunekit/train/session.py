"""One process's part of a run: load, measure, train, measure again, save. The launcher starts it once a rank."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import MachineError
from tunekit.core.progress import Screen, Silent, Step
from tunekit.core.registry import METHODS
from tunekit.data.ledger import Ledger
from tunekit.data.prepare import Prepared
from tunekit.evaluate.run import check, compare, evaluate_model
from tunekit.model.load import Loaded, load_model
from tunekit.model.save import save_model, stop_ids
from tunekit.plan.plan import Plan
from tunekit.runs.environment import library_versions
from tunekit.runs.layout import RunFolder
from tunekit.runs.metrics import MetricsWriter
from tunekit.train.inputs import EvalItem, Inputs, eval_items

if TYPE_CHECKING:
    from tunekit.train.trainer import TunekitTrainer


@dataclass
class Outcome:
    """What a session found: plain values for the record. ``data`` is set when rows were only read while training."""

    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class Session:
    """Runs a plan on prepared data in this process.

    Args:
        plan: the resolved plan.
        prepared: its data.
        screen: for rank 0; the other ranks are silent.
    """

    def __init__(self, plan: Plan, prepared: Prepared, screen: Screen) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.plan, self.prepared = plan, prepared
        self.screen: Screen = screen if self.rank == 0 else Silent()
        self.inputs = Inputs(plan.recipe, Path(plan.recipe_folder))
        self.folder = RunFolder(Path(plan.run_dir))
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Trains and evaluates; rank 0 saves the model.

        Raises:
            TunekitError: of the kind that fits the cause.
        """
        import torch

        torch.set_num_threads(self.plan.threads)
        items = self._items()
        with self._phase("loading"), self.screen.step("loading model"):
            loaded = load_model(self.plan)
            trainer = self._trainer(loaded)
        self._check_ranks(trainer)
        baseline = self._measure(trainer, items, "base model") if self.plan.recipe.eval.baseline else None
        self._train(trainer)
        tuned = self._measure(trainer, items, "tuned model")
        if tuned is not None:
            spec, seed = self.plan.recipe.eval, self.plan.recipe.train.seed
            self.outcome.evaluation = compare(
                baseline, tuned, confidence=spec.confidence, seed=seed, samples=spec.samples
            )
        self._save(trainer)
        return self.outcome

    def _items(self) -> list[EvalItem]:
        """The held-out rows that the evaluation can use; those it cannot are counted aloud."""
        items = eval_items(self.prepared)
        if self.plan.recipe.eval.generate:
            usable = [item for item in items if item.prompt_ids]
            if usable and len(usable) < len(items):
                lost = len(items) - len(usable)
                self.screen.warn(f"{lost:,} held-out rows are cut before their last answer: they are not evaluated")
                items = usable
        check(items, self.plan.recipe.eval)
        return items

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = self.outcome.seconds.get(name, 0.0) + time.perf_counter() - started
            self.outcome.seconds[name] = round(spent, 3)

    def _trainer(self, loaded: Loaded) -> Any:
        from transformers import PrinterCallback

        recipe = self.plan.recipe
        self.outcome.model = {
            "name": recipe.model.name,
            "revision": recipe.model.revision,
            "parameters": loaded.parameters,
            "trainable": loaded.trainable,
        }
        staging = self.folder.path / ".staging"
        trainer = METHODS.load(recipe.method).build(
            self.plan,
            loaded.model,
            self.inputs.tokenizer,
            self.inputs.stream.dataset() if self.inputs.stream else self.prepared.dataset("train"),
            self.prepared.dataset("eval"),
            staging,
        )
        trainer.remove_callback(PrinterCallback)  # the screen and metrics.jsonl say it
        facts = {"data": self.prepared.facts["fingerprint"], "plan": self.plan.hash, "versions": library_versions()}
        trainer.attend(self.plan, facts)
        return trainer

    def _check_ranks(self, trainer: Any) -> None:
        running = trainer.accelerator.num_processes
        if running != self.plan.processes:
            raise MachineError(
                f"{running} process(es) run, the plan has {self.plan.processes}",
                where="launch.processes",
                fix="the global batch would not be the recipe's: start it with `tunekit`, not another launcher",
            )

    def _measure(self, trainer: Any, items: list[EvalItem], what: str) -> Any:
        """Evaluates on rank 0 while the others wait; None when nothing is held out."""
        if not items:
            return None
        results = None
        with self._phase("evaluating"):
            if self.rank == 0:
                self.screen.say(f"evaluating the {what}")
                # without the mixed-precision wrapper: base and tuned model are measured in the same arithmetic
                model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
                tokenizer = self.inputs.tokenizer
                stops = stop_ids(tokenizer, model, self.inputs.turn_end)
                results = evaluate_model(model, tokenizer, items, self.plan.recipe.eval, self.screen, stop_ids=stops)
            trainer.accelerator.wait_for_everyone()
        return results

    def _train(self, trainer: Any) -> None:
        with self._phase("training"), self.screen.step("training", unit="steps") as step, ExitStack() as stack:
            writer = stack.enter_context(MetricsWriter(self.folder.metrics)) if self.rank == 0 else None
            trainer.add_callback(self._reporter(trainer, step, writer))
            try:
                result = trainer.train()
            finally:
                self._clear_staging()
        self._note_training(trainer, result.training_loss)

    def _clear_staging(self) -> None:
        """Removes half-written checkpoints; what trackers wrote beside them (tensorboard's events) is kept."""
        staging = self.folder.path / ".staging"
        if self.rank != 0 or not staging.exists():
            return
        for path in staging.iterdir():
            if not path.name.startswith("checkpoint-"):
                (self.folder.path / "trackers").mkdir(exist_ok=True)
                path.rename(self.folder.path / "trackers" / path.name)
        shutil.rmtree(staging, ignore_errors=True)

    def _reporter(self, trainer: Any, step: Step, writer: MetricsWriter | None) -> Any:
        """A callback that moves the bar at every step, and shows and writes what is logged."""
        from tunekit.train.trainer import Reporter

        def report(values: dict[str, Any]) -> None:
            self.screen.metrics(values)
            if writer is not None:
                writer.write({name: value for name, value in values.items() if name != "total_steps"})

        return Reporter(trainer, report, step.advance)

    def _note_training(self, trainer: Any, mean_loss: float) -> None:
        state = trainer.state
        tokens, trained = _total(trainer, "tokens_seen"), _total(trainer, "trained_seen")
        losses = [entry for entry in state.log_history if "loss" in entry]
        evals = [entry for entry in state.log_history if "eval_loss" in entry]
        self.outcome.training = {
            "steps": state.global_step,
            "epochs": round(state.epoch or 0.0, 4),
            "tokens": tokens,
            "trained_tokens": trained,
            "tokens_per_second": round(tokens / self.outcome.seconds["training"], 1),
            "final_loss": losses[-1]["loss"] if losses else mean_loss,
            "final_eval_loss": evals[-1]["eval_loss"] if evals else None,
        }
        if state.best_global_step:
            best = {"step": state.best_global_step, "metric": "eval_loss", "value": state.best_metric}
            self.outcome.training["best"] = best

    def _save(self, trainer: Any) -> None:
        with self._phase("saving"):
            if self.rank == 0:
                with self.screen.step("saving model"):
                    model = trainer.accelerator.unwrap_model(trainer.model)
                    save_model(model, self.inputs.tokenizer, self.folder.model, self.inputs.turn_end)
                self._account_for_stream()
            trainer.accelerator.wait_for_everyone()

    def _account_for_stream(self) -> None:
        """A stream's rows are known only now: they join the ledger of the held-out rows."""
        stream = self.inputs.stream
        if stream is None:
            return
        ledger = Ledger.load(self.folder.ledger)
        ledger.extend(stream.ledger)
        ledger.check(self.plan.recipe.data.max_drop_rate)
        ledger.save(self.folder.ledger)
        self.outcome.data = {"fingerprint": stream.content.hexdigest(), "splits": ledger.summary()}


def _total(trainer: TunekitTrainer, name: str) -> int:
    """A counter summed over the ranks."""
    import torch

    value = torch.as_tensor(getattr(trainer, name, 0), device=trainer.accelerator.device)  # type: ignore[attr-defined]
    return int(trainer.accelerator.reduce(value, "sum"))  # type: ignore[attr-defined]
