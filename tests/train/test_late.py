"""Where the host does not wait for the device: it reads of a fault one step late, and nothing has happened by then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunekit.core.errors import DivergedError
from tunekit.core.files import sha256_file

FAULT_AT = 3
SETTINGS = {"train__max_steps": 7, "train__batch_size": 4, "train__log_every": 100, "train__save_every": 100}


@pytest.fixture
def late(monkeypatch):
    """The CPU is taken for a device for which nobody waits."""
    from tunekit.train.guards import Guarding

    monkeypatch.setattr(Guarding, "read_late", ("cpu", "cuda"))


@pytest.fixture
def spoiled(monkeypatch):
    """In one step, and in no other, a gradient is not a number; keeps the weights from before that step."""
    from transformers import TrainerCallback

    from tunekit.train.session import Session

    original, made = Session.build, {"begun": []}

    class Plant(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **_):
            made["begun"].append(state.global_step + 1)
            if state.global_step + 1 == FAULT_AT and "weights" not in made:
                made["weights"] = {name: value.clone() for name, value in model.state_dict().items()}
                parameter = [*model.parameters()][-1]
                made["hook"] = parameter.register_hook(lambda gradient: gradient * float("nan"))
            elif "hook" in made:
                made["hook"].remove()

    def build(self):
        made["trainer"] = original(self)
        made["trainer"].add_callback(Plant())
        return made["trainer"]

    monkeypatch.setattr(Session, "build", build)
    return made


def unequal(made):
    """Names of the weights that are not what they were before the fault."""
    import torch

    now = made["trainer"].model.state_dict()
    return [name for name, value in made["weights"].items() if not torch.equal(now[name], value)]


def test_the_fault_is_read_a_step_later_and_no_update_was_made(late, spoiled, plan_of, run_plan):
    with pytest.raises(DivergedError, match=f"the gradient norm of step {FAULT_AT} is nan"):
        run_plan(plan_of(**SETTINGS))
    assert spoiled["begun"] == [1, 2, 3, 4]
    assert unequal(spoiled) == []


def test_without_the_brake_the_weights_would_be_lost(late, spoiled, plan_of, run_plan, monkeypatch):
    from tunekit.train.late import Brake

    monkeypatch.setattr(Brake, "see", lambda self, values: None)
    with pytest.raises(DivergedError):
        run_plan(plan_of(**SETTINGS))
    assert unequal(spoiled)


def test_nothing_is_written_of_a_step_before_it_is_known_how_it_went(late, spoiled, plan_of, run_plan):
    plan = plan_of(**SETTINGS | {"train__save_every": FAULT_AT - 1, "train__log_every": FAULT_AT})
    with pytest.raises(DivergedError, match=f"the gradient norm of step {FAULT_AT} is nan"):
        run_plan(plan)
    assert spoiled["begun"] == [1, 2, 3]  # its loss was to be told
    folder = Path(plan.run_dir)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{FAULT_AT - 1:06d}"]
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1]
    assert unequal(spoiled) == []


@pytest.mark.slow
def test_a_fault_in_the_last_step_is_found(late, spoiled, plan_of, run_plan):
    plan = plan_of(**SETTINGS | {"train__max_steps": FAULT_AT})
    with pytest.raises(DivergedError, match=f"the gradient norm of step {FAULT_AT} is nan"):
        run_plan(plan)
    assert not (Path(plan.run_dir) / "model").exists()


def test_a_rollback_ends_where_a_run_without_those_batches_does(late, spoiled, plan_of, run_plan, monkeypatch):
    from tunekit.train.guards import Guarding

    settings = SETTINGS | {"train__save_every": 1, "train__keep_checkpoints": 9, "train__log_every": 2}
    plan = plan_of(**settings, guards__on_divergence="rollback")
    record = run_plan(plan)
    assert [(back.step, back.to) for back in record.training.rollbacks] == [(FAULT_AT, 1)]
    monkeypatch.setattr(Guarding, "read_late", ())
    golden = plan_of(**settings)
    spoiled["weights"] = {}  # no further fault

    from tunekit.train.session import Session

    build = Session.build

    def without(self):
        trainer = build(self)
        trainer.skipped = {FAULT_AT - 1, FAULT_AT}
        return trainer

    monkeypatch.setattr(Session, "build", without)
    run_plan(golden)
    assert weights(plan) == weights(golden)


def test_reading_late_changes_nothing(late, plan_of, run_plan, monkeypatch):
    from tunekit.train.guards import Guarding
    from tunekit.train.late import Brake

    braked = []
    original = Brake.see
    monkeypatch.setattr(Brake, "see", lambda self, values: (braked.append(1), original(self, values))[1])
    plans = [plan_of(**SETTINGS | {"train__log_every": 3}) for _ in range(2)]
    run_plan(plans[0])
    assert len(braked) == SETTINGS["train__max_steps"]
    monkeypatch.setattr(Guarding, "read_late", ())
    run_plan(plans[1])
    assert len(braked) == SETTINGS["train__max_steps"]
    assert weights(plans[0]) == weights(plans[1])
    assert losses(plans[0]) == losses(plans[1])


def test_an_optimizer_that_cannot_be_held_back_is_waited_for(late, plan_of, session_of):
    for name, fits in (("adamw", True), ("adafactor", False), ("muon", False)):
        session, trainer = session_of(plan_of(train__optimizer=name))
        session._train(trainer)
        assert (trainer.brake is not None) == fits, name


def weights(plan):
    return sha256_file(Path(plan.run_dir) / "model" / "model.safetensors")


def losses(plan):
    lines = [json.loads(line) for line in (Path(plan.run_dir) / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss"), line.get("grad_norm")) for line in lines]
