"""guards.on_divergence: warn, stop, or back to the last checkpoint and past the batches that went wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunekit.core.errors import DivergedError
from tunekit.core.files import sha256_file

BASE = {"train__max_steps": 7, "train__save_every": 1, "train__keep_checkpoints": 9, "train__batch_size": 4}


@pytest.fixture
def fault(monkeypatch):
    """Plants a fault when a step begins, so many times; returns how to arm it."""
    import torch
    from transformers import TrainerCallback

    from tunekit.train.session import Session

    build = Session.build

    def arm(kind, step, times=1):
        left = [times]

        class Plant(TrainerCallback):
            def __init__(self, trainer):
                self.trainer = trainer

            def on_step_begin(self, args, state, control, model=None, **_):
                begins = state.global_step + 1
                if not left[0] or begins in self.trainer.skipped or begins < step or (times == 1 and begins > step):
                    return
                left[0] -= 1
                with torch.no_grad():
                    for parameter in [*model.parameters()][-1:] if kind == "nan" else model.parameters():
                        parameter.mul_(float("nan") if kind == "nan" else 40.0)

        def armed(self):
            trainer = build(self)
            trainer.add_callback(Plant(trainer))
            return trainer

        monkeypatch.setattr(Session, "build", armed)

    return arm


def model_hash(plan):
    return sha256_file(Path(plan.run_dir) / "model" / "model.safetensors")


def samples(plan):
    return [json.loads(line) for line in (Path(plan.run_dir) / "samples.jsonl").read_text().splitlines()]


@pytest.fixture
def without(monkeypatch):
    """Runs a plan in which some steps are left out from the start: the golden value of a rollback."""
    from tunekit.train.session import Session

    def arm(steps):
        build = Session.build

        def armed(self):
            trainer = build(self)
            trainer.skipped = set(steps)
            return trainer

        monkeypatch.setattr(Session, "build", armed)

    return arm


@pytest.mark.parametrize("kind", ["nan", "spike"])
def test_it_goes_back_and_past_the_batches(kind, fault, plan_of, run_plan):
    plan = plan_of(**BASE, guards__on_divergence="rollback")
    fault(kind, 5)
    record = run_plan(plan)
    (back,) = record.training.rollbacks
    assert (back.step, back.to, back.skipped) == (5, 3, (4, 5)) and record.training.steps == 7
    assert ("is nan" in back.why) == (kind == "nan")
    lines = samples(plan)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["step"] for line in lines if line.get("skipped")] == [4, 5]
    losses = [json.loads(line) for line in (Path(plan.run_dir) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in losses if "loss" in line] == [1, 2, 3, 4, 5, 6, 7]


def test_the_result_is_that_of_a_run_without_those_steps(fault, without, plan_of, run_plan, monkeypatch):
    went_back = plan_of(**BASE, guards__on_divergence="rollback")
    with monkeypatch.context():
        fault("nan", 5)
        run_plan(went_back)
    monkeypatch.undo()
    golden = plan_of(**BASE)
    without({4, 5})
    run_plan(golden)
    assert model_hash(went_back) == model_hash(golden)
    left_out = [line["rows"] for line in samples(golden) if line.get("skipped")]
    assert left_out == [line["rows"] for line in samples(went_back) if line.get("skipped")]


def test_without_a_checkpoint_it_goes_back_to_the_beginning(fault, plan_of, run_plan):
    plan = plan_of(**BASE | {"train__save_every": "never"}, guards__on_divergence="rollback")
    fault("nan", 3)
    (back,) = run_plan(plan).training.rollbacks
    assert (back.to, back.skipped) == (0, (2, 3))


@pytest.mark.slow
def test_it_gives_up_after_three_times(fault, plan_of, run_plan):
    plan = plan_of(**BASE | {"train__max_steps": 20}, guards__on_divergence="rollback")
    fault("nan", 6, times=99)
    with pytest.raises(DivergedError, match="gone back 3 times") as caught:
        run_plan(plan)
    assert caught.value.exit_code == 5
    assert [path.name for path in sorted((Path(plan.run_dir) / "checkpoints").iterdir())]


def test_a_run_that_went_back_and_was_cut_off_still_leaves_the_batches_out(fault, plan_of, run_plan):
    from tunekit.core.progress import Silent
    from tunekit.train.pipeline import Job, run

    plan = plan_of(**BASE, guards__on_divergence="rollback")
    fault("nan", 3)
    run_plan(plan)
    before = model_hash(plan)
    folder = Path(plan.run_dir)
    import shutil

    for step in (6, 7):
        shutil.rmtree(folder / "checkpoints" / f"step-{step:06d}")
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"status": "running"}))
    run(Job(plan, None, resume=True), Silent())
    assert model_hash(plan) == before


@pytest.fixture
def warned(monkeypatch):
    """The warnings of a run."""
    from tunekit.core.progress import Silent

    found = []
    monkeypatch.setattr(Silent, "warn", lambda self, text: found.append(text))
    return found


def test_a_spike_is_warned_of_and_the_run_goes_on(fault, plan_of, run_plan, warned):
    plan = plan_of(**BASE)
    fault("spike", 5)
    assert run_plan(plan).training.steps == 7
    assert any("step 5" in text for text in warned)


@pytest.mark.slow
def test_a_spike_ends_the_run_when_the_recipe_says_stop(fault, plan_of, run_plan):
    plan = plan_of(**BASE, guards__on_divergence="stop")
    fault("spike", 5)
    with pytest.raises(DivergedError, match="step 5"):
        run_plan(plan)
    names = sorted(path.name for path in (Path(plan.run_dir) / "checkpoints").iterdir())
    assert names[-1] == "step-000004"


def test_a_learning_rate_of_ten_is_warned_of_within_twenty_steps(plan_of, run_plan, warned):
    plan = plan_of(train__learning_rate=10.0, train__max_steps=20, train__schedule="constant")
    run_plan(plan)
    assert warned and int(warned[0].split("step ")[1].split(":")[0]) <= 20


def test_a_healthy_run_is_not_warned_of(plan_of, run_plan, warned):
    run_plan(plan_of(train__max_steps=40, train__batch_size=2))
    assert warned == []
