"""The training of a run on one rank: from a checkpoint or the beginning, and back again where the recipe wants it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import DivergedError
from tunekit.core.progress import Screen, Step
from tunekit.plan.plan import Plan
from tunekit.runs.layout import RunFolder, checkpoints, step_of
from tunekit.runs.metrics import MetricsWriter
from tunekit.train.checkpoint import newest
from tunekit.train.resume import clear_staging

if TYPE_CHECKING:
    from tunekit.train.guards import RollBack

ROLLBACKS = 3
"""How often a run goes back before it is given up."""


class Training:
    """Runs a trainer to its end.

    Args:
        plan: the resolved plan.
        folder: the run's.
        rank: this process.
        screen: shows values and warnings.
        step: the progress bar.
        build: makes model and trainer anew, for a rollback.
    """

    def __init__(
        self, plan: Plan, folder: RunFolder, rank: int, screen: Screen, step: Step, build: Callable[[], Any]
    ) -> None:
        self.plan, self.folder, self.rank, self.screen, self.step, self.build = plan, folder, rank, screen, step, build
        self.rollbacks: list[dict[str, Any]] = []
        self._shown = 0

    def run(self, trainer: Any, checkpoint: Path | None) -> tuple[Any, Any]:
        """Trains until the end; returns the last trainer and Trainer's own result.

        Raises:
            DivergedError: loss or gradient went wrong.
            MachineError: the disk is full.
        """
        from tunekit.train.guards import RollBack

        try:
            while True:
                try:
                    return trainer, self._once(trainer, checkpoint)
                except RollBack as back:
                    trainer, checkpoint = self._back(trainer, back)
        finally:
            if self.rank == 0:
                clear_staging(self.folder)

    def _once(self, trainer: Any, checkpoint: Path | None) -> Any:
        from tunekit.train.callbacks import Reporter

        step = step_of(checkpoint) if checkpoint else 0
        with ExitStack() as stack:
            trainer.samples = stack.enter_context(MetricsWriter(self.folder.samples(self.rank), keep_through=step))
            if self.rank == 0:
                trainer.metrics = stack.enter_context(MetricsWriter(self.folder.metrics, keep_through=step))

            def report(values: dict[str, Any]) -> None:
                self.screen.metrics(values)
                if trainer.metrics is not None:
                    trainer.metrics.write({name: value for name, value in values.items() if name != "total_steps"})

            trainer.add_callback(Reporter(trainer, report, self._show))
            return trainer.train_from(checkpoint)

    def _show(self, step: int) -> None:
        """Moves the bar to ``step``, also backwards."""
        self.step.advance(step - self._shown)
        self._shown = step

    def _back(self, trainer: Any, back: RollBack) -> tuple[Any, Path | None]:
        """The trainer and the checkpoint with which training begins again; every rank comes here at the same step.

        The fault shows in the loss before step S. So either the batch of S or the update of S - 1 is at its root, and
        both are left out; the checkpoint is one from before S - 1 was done.
        """
        if len(self.rollbacks) == ROLLBACKS:
            raise DivergedError(
                f"{back.why}; the run has gone back {ROLLBACKS} times already",
                where=f"step {back.step}",
                fix="lower train.learning_rate; the last good checkpoint is kept",
            )
        found = None
        if self.rank == 0:
            found, _ = newest(self.folder.checkpoints, before=back.step - 1)
            for path in checkpoints(self.folder.checkpoints):
                if step_of(path) >= back.step - 1:
                    shutil.rmtree(path)
        checkpoint: Path | None = trainer.ranks.gather(found.folder if found else None)[0]
        step = step_of(checkpoint) if checkpoint else 0
        left_out = [number for number in (back.step - 1, back.step) if number > step]
        self.rollbacks.append({"step": back.step, "to": step, "why": back.why, "skipped": left_out})
        self.screen.warn(f"{back.why}: back to step {step}, and past the batches of {_named(left_out)}")
        skipped = trainer.skipped | set(left_out)
        trainer = self.build()
        trainer.skipped = skipped
        return trainer, checkpoint


def _named(steps: list[int]) -> str:
    return ("step " if len(steps) == 1 else "steps ") + " and ".join(map(str, steps))
