"""A disk that fills up during a run: the run ends with numbers, the checkpoint before is whole, and it can go on."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest
from forked_for_tests import small_disk

from tunekit.core.errors import MachineError
from tunekit.core.files import sha256_file
from tunekit.train.checkpoint import verify

BASE = {"train__max_steps": 6, "train__save_every": 2, "train__keep_checkpoints": 5}


@pytest.fixture
def at_step(monkeypatch):
    """Does something when a step ends, once."""
    from transformers import TrainerCallback

    from tunekit.train.session import Session

    build = Session.build

    def arm(step, act):
        class Act(TrainerCallback):
            done = False

            def on_step_begin(self, args, state, control, **_):
                if state.global_step == step and not self.done:
                    self.done = True
                    act()

        def armed(self):
            trainer = build(self)
            if self.checkpoint is None:
                trainer.add_callback(Act())
            return trainer

        monkeypatch.setattr(Session, "build", armed)

    return arm


def go_on(plan):
    from tunekit.core.progress import Silent
    from tunekit.train.pipeline import Job, run

    return run(Job(plan, None, resume=True), Silent())


def same_end(plan, whole):
    names = ("model/model.safetensors", "samples.jsonl")
    found = [[sha256_file(Path(each.run_dir) / name) for name in names] for each in (plan, whole)]
    return found[0] == found[1]


def whole_run(plan_of, run_plan):
    plan = plan_of(**BASE)
    run_plan(plan)
    return plan


def refused(plan, run_plan):
    with pytest.raises(MachineError) as caught:
        run_plan(plan)
    folder = Path(plan.run_dir)
    record = json.loads((folder / "record.json").read_text())
    assert (caught.value.exit_code, record["exit_code"], record["status"]) == (4, 4, "failed")
    assert not (folder / "model").exists() and not (folder / ".staging").exists()
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["step-000002"]
    assert verify(folder / "checkpoints" / "step-000002").step == 2
    return caught.value.problems[0]


def test_a_write_that_fails_in_the_middle_of_a_save(at_step, plan_of, run_plan):
    """The limit of file sizes cuts the weights in the middle, as a full disk does; no space check can foresee it."""
    whole = whole_run(plan_of, run_plan)
    plan = plan_of(**BASE)
    size = (Path(whole.run_dir) / "model" / "model.safetensors").stat().st_size
    at_step(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY)))
    try:
        problem = refused(plan, run_plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert "needed" in problem.what and "free" in problem.what and "bytes" in problem.what
    assert str(plan.run_dir) in problem.where
    assert go_on(plan).resumed[0].step == 2
    assert same_end(plan, whole)


def test_a_disk_that_another_program_fills_up(at_step, plan_of, run_plan, tmp_path):
    whole = whole_run(plan_of, run_plan)
    with small_disk(tmp_path / "disk", "size=24m") as disk:
        plan = plan_of(**BASE, output__dir=str(disk / "run"))

        def fill():
            free = shutil.disk_usage(disk).free
            (disk / "ballast").write_bytes(bytes(free - 300_000))

        at_step(3, fill)
        problem = refused(plan, run_plan)
        assert "no room for a checkpoint" in problem.what and "needed" in problem.what and "free" in problem.what
        (disk / "ballast").unlink()
        go_on(plan)
        assert same_end(plan, whole)


def test_too_little_space_from_the_start_is_refused_before_the_first_step(plan_of, run_plan, tmp_path):
    with small_disk(tmp_path / "disk", "size=3m") as disk:
        plan = plan_of(**BASE, output__dir=str(disk / "run"))
        with pytest.raises(MachineError, match="no room for checkpoints and model") as caught:
            run_plan(plan)
        assert caught.value.exit_code == 4
        assert not (disk / "run" / "samples.jsonl").exists() and not (disk / "run" / "checkpoints").exists()


def test_a_place_that_cannot_be_written_is_noticed_before_the_first_step(plan_of, monkeypatch):
    """A file stands where the checkpoints belong."""
    from tunekit.core.progress import Silent
    from tunekit.train import pipeline

    plan = plan_of(**BASE)
    saved = pipeline.write_record

    def plant(folder, record):
        saved(folder, record)
        if record.data is not None and not folder.checkpoints.exists():
            folder.checkpoints.write_text("in the way")

    monkeypatch.setattr(pipeline, "write_record", plant)
    with pytest.raises(MachineError) as caught:
        pipeline.run(pipeline.Job(plan, "method: sft\n"), Silent())
    assert "checkpoints" in caught.value.problems[0].where
    assert not (Path(plan.run_dir) / "samples.jsonl").exists()
