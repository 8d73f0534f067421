"""What is looked at in every step: loss and gradient are finite, the loss does not leap, nobody wants to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tunekit.core.errors import DivergedError, Problem
from tunekit.train.late import Brake, Late, Step
from tunekit.train.saving import Saving
from tunekit.train.signals import StopRequest

_LOWER = "lower train.learning_rate, or use precision: fp32; checkpoints before this step are whole"


class RollBack(Exception):
    """Training went wrong at ``step``, and the recipe wants to go back and leave those batches out."""

    def __init__(self, step: int, why: str) -> None:
        super().__init__(why)
        self.step, self.why = step, why


class Guarding(Saving):
    """Mixed in before a Trainer class; `train.trainer.TunekitTrainer` brings what is named here."""

    stop: StopRequest
    where: Callable[[int], str]
    warn: Callable[[str], None]
    _window: list[dict[str, Any]]
    """The batches of the step under way."""
    _step_loss: Any

    read_late = ("cuda",)
    """Devices for whose numbers the host does not wait."""
    brake: Brake | None = None
    _unread: Step | None = None

    def begin(self) -> None:
        """Called when training begins, with the optimizer made: takes up what the checkpoint remembers."""
        optimizer, scaler = self.optimizer.optimizer, self.accelerator.scaler  # type: ignore[attr-defined]
        late = self.args.device.type in self.read_late and scaler is None and Brake.fits(optimizer)
        self.brake = Brake(optimizer, self.args.device) if late else None
        self._unread = None
        super().begin()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient norm before clipping; here, before the optimizer steps, the ranks agree on how the step went.

        On a GPU the host would have to wait for the device to know it. There the device itself leaves out the update
        of a step that went wrong, and all after it, and the host reads of it a step later.

        Raises:
            DivergedError: loss or gradient is not finite, or the loss rose suddenly and the recipe wants to stop.
            RollBack: the same, and the recipe wants to go back.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        device = self.args.device
        values = torch.stack([torch.as_tensor(each).detach().to(device).float() for each in (self._step_loss, norm)])
        step = Step(self.state.global_step + 1, self._window, Late(values))
        if self.brake is None:
            self._judge(step)
            return norm
        self.brake.see(values)
        before, self._unread = self._unread, step
        self._judge(before)
        return norm

    def _judge(self, step: Step | None) -> None:
        """The ranks agree on whether to stop, and on how ``step`` went; None when there is none yet."""
        loss, broken = 0.0, ""
        if step is not None:
            loss, norm = step.values.read()
            broken = self._fault(step.number, loss, norm)
        asked, faults, total = self.ranks.sum([self.stop.signum is not None, bool(broken), 0.0 if broken else loss])
        self.stopping = asked > 0
        if step is None:
            return
        if faults:
            self._diverged(step, broken)
        elif step.number not in self.skipped:
            self._watch(step.number, total / self.ranks.world)

    def _fault(self, step: int, loss: float, norm: float) -> str:
        scaler = self.accelerator.scaler  # type: ignore[attr-defined]
        searching = scaler is not None and scaler.get_scale() > 1  # fp16: it skips this step and halves its scale
        if not math.isfinite(loss):
            return f"the loss of step {step} is {loss}"
        if not math.isfinite(norm) and not searching:
            return f"the gradient norm of step {step} is {norm}"
        return ""

    def settle(self) -> None:
        """Waits for the device, so that nothing is told or written of a step before it is known how it went."""
        step, self._unread = self._unread, None
        if step is not None:
            self._judge(step)

    def _diverged(self, step: Step, broken: str) -> None:
        """Every rank is here. The one that saw the fault looks for its cause, and all tell the same."""
        from tunekit.train.diagnose import find_cause

        whats = [what for what in self.ranks.gather(broken) if what]
        if self.plan.recipe.guards.on_divergence == "rollback":
            raise RollBack(step.number, whats[0])
        cause = find_cause(self, step.window, self.where) if broken else None
        causes = [each for each in self.ranks.gather(cause) if each is not None]
        # a gradient that is not finite is so on every rank; those without the row at fault have nothing to tell
        telling = [each for each in causes if each.came_again] or causes[:1]
        found: list[Problem] = [problem for each in telling for problem in each.problems()]
        raise DivergedError(whats[0], where=f"step {step.number}", fix=_LOWER, problems=list(dict.fromkeys(found)))

    def _watch(self, step: int, loss: float) -> None:
        spike = self.spikes.see(loss)
        if spike is None:
            return
        what = f"step {step}: {spike.words()}"
        if self.plan.recipe.guards.on_divergence == "rollback":
            raise RollBack(step, what)
        if self.plan.recipe.guards.on_divergence == "stop":
            raise DivergedError(what, where=f"step {step}", fix=_LOWER)
        self.warn(what)
