"""Checkpoints and what rides on them: manifest, rotation, early stopping, the best weights; and options of a step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunekit.core.files import sha256_file
from tunekit.plan.plan import Plan

EVAL = {"data__eval": {"count": 5}, "eval__every": 1, "eval__batch_size": 4}


def names(plan):
    return sorted(path.name for path in (Path(plan.run_dir) / "checkpoints").iterdir())


def test_the_manifest_lists_every_file_and_no_pickle_of_arguments(plan_of, run_plan):
    plan = plan_of(train__max_steps=4, train__save_every=2, train__keep_checkpoints=5)
    run_plan(plan)
    assert names(plan) == ["step-000002", "step-000004"]
    for name in names(plan):
        folder = Path(plan.run_dir) / "checkpoints" / name
        manifest = json.loads((folder / "MANIFEST.json").read_text())
        there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert there - {"MANIFEST.json"} == manifest["files"].keys()
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= there
        assert "training_args.bin" not in there
        for file, facts in manifest["files"].items():
            assert facts == {"size": (folder / file).stat().st_size, "sha256": sha256_file(folder / file)}, file
        assert manifest["step"] == int(name.removeprefix("step-"))
        assert manifest["plan"] == Plan.load(Path(plan.run_dir) / "plan.json").hash
        assert manifest["data"] and manifest["versions"]["transformers"]
    assert not (Path(plan.run_dir) / ".staging").exists()


def test_rotation_keeps_the_newest(plan_of, run_plan):
    plan = plan_of(train__max_steps=6, train__save_every=1, train__keep_checkpoints=2)
    run_plan(plan)
    assert names(plan) == ["step-000005", "step-000006"]


@pytest.fixture
def scripted(monkeypatch):
    """Evaluation losses by script, so that the best step is known; each evaluation also keeps the weights' hash."""
    from tunekit.train.trainer import TunekitTrainer

    hashes = {}

    def script(losses):
        def evaluate(self, *args, **kwargs):
            hashes[self.state.global_step] = hash_of(self.model)
            metrics = {"eval_loss": losses[self.state.global_step - 1]}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        monkeypatch.setattr(TunekitTrainer, "evaluate", evaluate)
        return hashes

    return script


def hash_of(model):
    import hashlib

    digest = hashlib.sha256()
    for _, value in sorted(model.state_dict().items()):
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("adapter", [None, {"kind": "lora", "r": 4}])
def test_keep_best_ends_with_the_best_weights_and_never_deletes_them(adapter, scripted, plan_of, session_of, run_plan):
    hashes = scripted([3.0, 1.0, 2.0, 2.5, 2.6, 2.7])
    plan = plan_of(train__max_steps=6, train__keep_best=True, train__keep_checkpoints=2, adapter=adapter, **EVAL)
    session, trainer = session_of(plan)
    session._train(trainer)
    assert names(plan) == ["step-000002", "step-000005", "step-000006"]
    assert hash_of(trainer.model) == hashes[2] != hashes[6]
    assert session.outcome.training["best"] == {"step": 2, "metric": "eval_loss", "value": 1.0}


def test_a_best_checkpoint_that_was_damaged_is_not_finished_with(scripted, plan_of, session_of):
    from transformers import TrainerCallback

    from tunekit.core.errors import MachineError

    scripted([3.0, 1.0, 2.0, 2.5])
    session, trainer = session_of(plan_of(train__max_steps=4, train__keep_best=True, **EVAL))

    class Damage(TrainerCallback):
        def on_epoch_end(self, args, state, control, **_):
            if state.global_step == 4:
                (Path(state.best_model_checkpoint) / "model.safetensors").write_bytes(b"")

    trainer.add_callback(Damage())
    with pytest.raises(MachineError, match=r"the best checkpoint is not what was written: model\.safetensors"):
        session._train(trainer)


def test_early_stopping_stops_after_its_patience(scripted, plan_of, run_plan):
    scripted([3.0, 1.0, 2.0, 2.5, 2.6, 2.7])
    plan = plan_of(train__max_steps=6, train__early_stopping={"patience": 2}, **EVAL)
    record = run_plan(plan)
    assert record.training.steps == 4 and record.status == "done"


def first_step(trainer):
    trainer.train()
    entry = trainer.state.log_history[0]
    return entry["loss"], float(entry["grad_norm"])


@pytest.mark.parametrize("adapter", [None, {"kind": "lora", "r": 4}])
def test_gradient_checkpointing_changes_nothing_but_memory(adapter, plan_of, session_of):
    plain = first_step(session_of(plan_of(adapter=adapter))[1])
    trainer = session_of(plan_of(adapter=adapter, train__gradient_checkpointing=True))[1]
    recomputed = first_step(trainer)
    assert trainer.model.is_gradient_checkpointing
    assert recomputed == pytest.approx(plain, rel=1e-6)


def test_neftune_adds_noise_in_training_only(plan_of, session_of):
    plain = first_step(session_of(plan_of())[1])
    trainer = session_of(plan_of(train__neftune_alpha=50.0))[1]
    noisy = first_step(trainer)
    assert noisy != pytest.approx(plain, rel=1e-4)
    assert not trainer.model.get_input_embeddings()._forward_hooks  # taken off again


def test_bf16_runs_on_a_cpu_near_fp32(plan_of, session_of):
    plain = first_step(session_of(plan_of())[1])
    plan = plan_of(train__precision="bf16")
    assert plan.precision == "bf16"
    half = first_step(session_of(plan)[1])
    assert half == pytest.approx(plain, rel=2e-2) and half != plain


def test_tensorboard_writes_its_events(plan_of, run_plan):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plan = plan_of(train__max_steps=3, train__trackers=["tensorboard"])
    run_plan(plan)
    events = sorted(Path(plan.run_dir).rglob("events.out.tfevents*"))
    assert events, "no event file in the run folder"
    found = EventAccumulator(str(events[0].parent))
    found.Reload()
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3]


def test_a_stream_trains_on_the_rows_of_its_ledger(plan_of, run_plan):
    """23 rows, 4 steps of 8: the stream begins anew, and its ledger still counts each row once."""
    plan = plan_of(data__streaming=True, train__max_steps=4, data__packing=False)
    record = run_plan(plan)
    train = record.data.splits["train"]
    assert (train.rows, train.kept + train.truncated, record.training.steps) == (23, 23, 4)
    assert record.data.fingerprint and 0 < record.training.final_loss < 9
