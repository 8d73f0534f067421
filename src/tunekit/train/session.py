"""One process's part of a run: load, measure, train, measure again, save. The launcher starts it once a rank."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tunekit.core.errors import MachineError, Stopped
from tunekit.core.progress import Screen
from tunekit.core.registry import METHODS
from tunekit.data.ledger import Ledger
from tunekit.data.prepare import Prepared
from tunekit.evaluate.contract import EvalItem
from tunekit.evaluate.mode import without_adapter
from tunekit.evaluate.run import check, compare
from tunekit.model.fingerprint import weights_fingerprint
from tunekit.model.load import Loaded, load_model
from tunekit.model.names import resolve_name
from tunekit.model.save import save_model, stop_ids
from tunekit.model.starts import changes_base, initial_state
from tunekit.plan.plan import Plan
from tunekit.runs.environment import library_versions
from tunekit.runs.layout import RunFolder, step_of
from tunekit.train.adapters import artefact_facts, begin_from_data
from tunekit.train.flops import measured_rate
from tunekit.train.inputs import Inputs, eval_items, planned_steps
from tunekit.train.resume import check_base
from tunekit.train.signals import StopRequest
from tunekit.train.tally import training_facts
from tunekit.train.training import Training


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
        screen: of this rank; only rank 0 shows anything.
        stop: whether somebody asked the run to end.
        checkpoint: a verified one, from which training goes on.
        pulse: told what is being done, at every batch: a sign of life.
    """

    def __init__(
        self,
        plan: Plan,
        prepared: Prepared,
        screen: Screen,
        *,
        stop: StopRequest | None = None,
        checkpoint: Path | None = None,
        pulse: Callable[[str], None] = lambda what: None,
    ) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.plan, self.prepared, self.checkpoint, self.pulse = plan, prepared, checkpoint, pulse
        self.stop = stop or StopRequest()
        self.screen = screen
        self.inputs = Inputs(plan.recipe, Path(plan.recipe_folder))
        self.folder = RunFolder(Path(plan.run_dir))
        self.outcome = Outcome()
        self.ceiling: float | None = None
        self.facts: dict[str, Any] | None = None

    def run(self) -> Outcome:
        """Trains and evaluates; rank 0 saves the model.

        Raises:
            TunekitError: of the kind that fits the cause.
            Stopped: somebody asked the run to end; a checkpoint was written if training had begun.
        """
        import torch

        torch.set_num_threads(self.plan.threads)
        items = self._items()
        with self._phase("loading"), self.screen.step("loading model"):
            self.facts = artefact_facts(self.plan) if self.rank == 0 else None  # now: files may change later
            trainer = self.build()
            trainer = self._rehearsed(trainer)
        if trainer.padded_because:
            self.screen.say(f"this run pads its batches ({trainer.padded_because}); group_by_length wastes less")
        base = "policy as it begins, the base of the comparison" if self.plan.base_is else "base model"
        baseline = self._measure(trainer, items, base, base=True) if self.plan.recipe.eval.baseline else None
        trainer = self._train(trainer)
        tuned = self._measure(trainer, items, "tuned model")
        if tuned is not None:
            spec, seed = self.plan.recipe.eval, self.plan.recipe.train.seed
            self.outcome.evaluation = trainer.beside() | compare(
                baseline, tuned, confidence=spec.confidence, seed=seed, samples=spec.samples
            )
        self._save(trainer)
        return self.outcome

    def build(self) -> Any:
        """Model and trainer as the plan says; nothing has been trained."""
        loaded = load_model(self.plan, planned_steps(self.plan, self.prepared.facts))
        if self.plan.recipe.adapter_block is not None:
            begin_from_data(loaded.model, self.plan, self.inputs, self.prepared)
        trainer = self._trainer(loaded)
        trainer.initial = initial_state(loaded.model)
        self._check_ranks(trainer)
        trainer.ready(self.screen)
        return trainer

    def _rehearsed(self, trainer: Any) -> Any:
        """Whether memory and disk suffice, and whether the end can be written, is found out now, not at the end."""
        from tunekit.train.disk import largest_file_bytes, needed_bytes, require_space
        from tunekit.train.memory import largest_micro_batch, probe
        from tunekit.train.rehearsal import rehearse

        if self.plan.recipe.train.micro_batch_size == "auto" and self.checkpoint is None:
            size = min(trainer.ranks.gather(largest_micro_batch(trainer, self.plan, self._where)))
            share = self.plan.micro_batch_size * self.plan.accumulation
            if size != self.plan.micro_batch_size:
                sizes = {"micro_batch_size": size, "accumulation": share // size}
                self.plan = self.plan.model_copy(update=sizes)
                trainer = None  # not two models in memory at once
                trainer = self.build()
            self.screen.say(f"micro-batch: {size} of {share} examples fit in memory at once")
        else:
            probe(trainer, self.plan, self._where)
        if self.rank == 0:
            self.plan.save(self.folder.plan)  # with what was settled since
            if self.folder.model.exists():  # of a run that is gone on with: from here on it is not finished
                shutil.rmtree(self.folder.model)
            existing = sum(path.stat().st_size for path in self.folder.checkpoints.rglob("*") if path.is_file())
            needed = needed_bytes(trainer.model, self.plan, existing)
            largest = largest_file_bytes(trainer.model, self.plan)
            require_space(self.folder.path, needed, "checkpoints and model", largest=largest)
            rehearse(trainer, self.inputs.tokenizer, self.folder, self.inputs.turn_end)
        trainer.ranks.wait()
        return trainer

    @cached_property
    def _ledger(self) -> Ledger:
        return Ledger.load(self.prepared.ledger_path)

    def _where(self, number: int) -> str:
        """``file:line`` of a row, by its number in the ledger; a stream's rows are known once they were read."""
        stream = self.inputs.stream
        return str((stream.ledger if stream and number < len(stream.ledger) else self._ledger)[number].origin)

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
        trainer = METHODS.load(recipe.method).build(
            self.plan,
            loaded.model,
            self.inputs.tokenizer,
            self.inputs.stream.dataset() if self.inputs.stream else self.prepared.dataset("train"),
            self.prepared.dataset("eval"),
            self.folder.staging,
        )
        self.plan = self.plan.model_copy(update={"compiled": bool(trainer.args.torch_compile)})
        trainer.remove_callback(PrinterCallback)  # the screen and metrics.jsonl say it
        base = weights_fingerprint(loaded.model, frozen_only=recipe.adapter_block is not None)
        replaced = recipe.adapter_block is None and resolve_name(recipe.model.name).random  # by the checkpoint's
        if self.checkpoint is not None and not replaced:
            check_base(self.checkpoint, base)
        facts = {
            "data": self.inputs.identity(self.prepared),
            "data_parts": self.inputs.parts,
            "base": base,
            "plan": self.plan.hash,
            "processes": self.plan.processes,
            "versions": library_versions(),
        }
        trainer.attend(self.plan, facts, stop=self.stop, where=self._where, warn=self.screen.warn, pulse=self.pulse)
        trainer.ceiling = self.ceiling  # of a trainer that a rollback builds anew
        return trainer

    def _check_ranks(self, trainer: Any) -> None:
        running = trainer.accelerator.num_processes
        if running != self.plan.processes:
            raise MachineError(
                f"{running} process(es) run, the plan has {self.plan.processes}",
                where="launch.processes",
                fix="the global batch would not be the recipe's: start it with `tunekit`, not another launcher",
            )

    def _measure(self, trainer: Any, items: list[EvalItem], what: str, *, base: bool = False) -> Any:
        """Evaluates on rank 0 while the others wait; None when nothing is held out. ``base``: without the adapter."""
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
                bare = base and not self.plan.base_is and not changes_base(model)
                with without_adapter(model) if bare else nullcontext(model) as measured:
                    results = trainer.measure(measured, tokenizer, items, self.screen, stops)
            trainer.accelerator.wait_for_everyone()
        return results

    def _train(self, trainer: Any) -> Any:
        """Trains, and returns the trainer that came to the end: a rollback brings a new one.

        Raises:
            Stopped: in good order, with a checkpoint.
        """
        self.ceiling = trainer.ceiling = self._measured_rate(trainer)
        with self._phase("training"), self.stop.deferred(), self.screen.step("training", unit="steps") as step:
            training = Training(self.plan, self.folder, self.rank, self.screen, step, self.build)
            trainer, result = training.run(trainer, self.checkpoint)
        self.outcome.training = training_facts(trainer, result.training_loss, self.outcome.seconds["training"])
        self.outcome.training["rollbacks"] = training.rollbacks
        if trainer.stopping:
            raise Stopped(self.stop.signum or signal.SIGTERM, self._told(trainer))
        return trainer

    def _measured_rate(self, trainer: Any) -> float | None:
        train = self.plan.recipe.train
        rows = 0 if self.inputs.stream else len(trainer.train_dataset)  # a stream has train.max_steps
        steps = train.max_steps or (train.epochs or 1.0) * rows / self.plan.examples_per_step
        done = step_of(self.checkpoint) if self.checkpoint else 0
        return measured_rate(self.plan, trainer.ranks, trainer.accelerator.device, steps - done)

    def _told(self, trainer: Any) -> str:
        step = trainer.state.global_step
        if not trainer.saves:
            return f"at step {step}; no checkpoint was written, for the recipe says `train.save_every: never`"
        return f"at step {step}, with a checkpoint; go on with `tunekit resume {self.plan.run_dir}`"

    def _save(self, trainer: Any) -> None:
        with self._phase("saving"):
            if self.rank == 0:
                with self.screen.step("saving model"):
                    model = trainer.accelerator.unwrap_model(trainer.model)
                    tokenizer, facts = self.inputs.tokenizer, self.facts
                    save_model(
                        model, tokenizer, self.folder.model, self.inputs.turn_end, facts=facts, initial=trainer.initial
                    )
                self._account_for_stream()
            trainer.accelerator.wait_for_everyone()

    def _account_for_stream(self) -> None:
        """A stream's rows are known only now: they join the ledger of the held-out rows."""
        stream = self.inputs.stream
        if stream is None:
            return
        ledger = stream.ledger  # first, so that the numbers in samples.jsonl are those of the ledger
        ledger.extend(Ledger.load(self.folder.ledger))
        ledger.check(self.plan.recipe.data.max_drop_rate)
        ledger.save(self.folder.ledger)
        self.outcome.data = {"fingerprint": stream.content.hexdigest(), "splits": ledger.summary()}
