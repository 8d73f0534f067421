"""A run that was stopped and gone on with ends bit for bit where the uninterrupted one ends, and saw the same rows."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tunekit.core.errors import Stopped
from tunekit.core.files import sha256_file

LORA = {"kind": "lora", "r": 4, "alpha": 8, "dropout": 0.1}
EVAL = {"data__eval": {"count": 5}, "eval__every": 2, "eval__batch_size": 4}
STEPS = 7
MATRIX = {
    "full": {},
    "lora": {"adapter": LORA},
    "packed": {"data__packing": True, "train__batch_size": 4, "data__max_length": 64},
    "lora packed": {"adapter": LORA, "data__packing": True, "train__batch_size": 4, "data__max_length": 64},
    "accumulation": {"train__micro_batch_size": 2},
    "workers": {"train__workers": 2},
    "streaming": {"data__streaming": True, "data__shuffle": False},
    "streaming shuffled": {"data__streaming": True, "train__micro_batch_size": 4, "adapter": LORA},
    "muon": {"train__optimizer": "muon"},
    "neftune": {"train__neftune_alpha": 5.0},
    "evaluated": {**EVAL, "train__keep_best": True, "train__early_stopping": {"patience": 50}},
    "evaluated with dropout": {**EVAL, "adapter": LORA},
    "logged seldom": {"train__log_every": 5},
    "sequential": {"data__shuffle": False},
    "pretrain": {"method": "pretrain", "data__packing": True, "train__batch_size": 4, "data__max_length": 64},
    "pretrain unpacked": {"method": "pretrain"},
}


@pytest.fixture
def ask_at(monkeypatch):
    """Sends this process a signal when a step ends."""
    from transformers import TrainerCallback

    from tunekit.train.session import Session

    build = Session.build

    def arm(step, signum=signal.SIGTERM, when="on_step_end"):
        class Ask(TrainerCallback):
            sent = False

            def look(self, args, state, control, **_):
                if state.global_step == step and not self.sent:
                    self.sent = True
                    os.kill(os.getpid(), signum)

        setattr(Ask, when, Ask.look)

        def armed(self):
            trainer = build(self)
            if self.checkpoint is None:
                trainer.add_callback(Ask())
            return trainer

        monkeypatch.setattr(Session, "build", armed)

    return arm


@pytest.fixture(scope="session")
def text_of():
    """Everything that a run saw and said, without the times."""

    def read(plan):
        folder = Path(plan.run_dir)
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for line in metrics:
            for name in ("seconds", "tokens_per_second", "trained_tokens_per_second", "memory_gb", "mfu"):
                line.pop(name, None)
        return metrics, (folder / "samples.jsonl").read_text()

    return read


def weights(plan):
    return {path.name: sha256_file(path) for path in sorted((Path(plan.run_dir) / "model").glob("*.safetensors"))}


@pytest.fixture(scope="session")
def go_on():
    """Goes on with a plan's run; returns its record."""
    from tunekit.core.progress import Silent
    from tunekit.train.pipeline import Job, run

    return lambda plan, *allowed: run(Job(plan, None, resume=True, allowed=allowed), Silent())


def moved(plan, at):
    """The same plan in a folder of its own."""
    return plan.model_copy(update={"run_dir": f"{plan.run_dir}-{at}"})


def cases():
    """Every setting stopped at steps 2 and 5; those that `make test` stops at step 2 are named."""
    quick = ("full", "lora packed", "pretrain")
    assert set(quick) <= set(MATRIX)
    for name in MATRIX:
        for at in (2, 5):
            slow = at == 5 or name not in quick
            yield pytest.param(name, at, marks=[pytest.mark.slow] if slow else [])
    # stopped while the evaluation after step 4 is under way: it is made up for by the run that goes on
    yield pytest.param("evaluated with dropout", 3)


@pytest.fixture(scope="module")
def uninterrupted(plan_of, run_plan):
    """The plan of a whole run of each setting."""
    made = {}

    def whole(name):
        if name not in made:
            sets = {"method": "sft", "train__max_steps": STEPS, "data__max_drop_rate": 0.5, **MATRIX[name]}
            made[name] = plan_of(**sets)
            run_plan(made[name])
        return made[name]

    return whole


@pytest.mark.parametrize(("name", "at"), cases())
def test_stopped_and_gone_on_with_is_as_if_never_stopped(name, at, uninterrupted, run_plan, ask_at, go_on, text_of):
    """23 rows in batches of 8: three steps an epoch, so step 2 and 5 are in the middle of one."""
    whole = uninterrupted(name)
    cut = moved(whole, at)
    ask_at(at)
    with pytest.raises(Stopped) as caught:
        run_plan(cut)
    assert caught.value.exit_code == 143 and "tunekit resume" in caught.value.told
    step = int(sorted(path.name for path in (Path(cut.run_dir) / "checkpoints").iterdir())[-1][5:])
    assert step in (at, at + 1)  # at once where an evaluation was under way
    folder = Path(cut.run_dir)
    record = json.loads((folder / "record.json").read_text())
    assert (record["status"], record["exit_code"]) == ("stopped", 143)
    assert not (folder / "model").exists() and not (folder / ".lock").exists()
    done = go_on(cut)
    assert done.status == "done" and done.resumed[0].step == step
    assert weights(cut) == weights(whole) and weights(whole)
    assert text_of(cut) == text_of(whole)
    assert done.training.tokens == json.loads((Path(whole.run_dir) / "record.json").read_text())["training"]["tokens"]


RECIPE = """\
method: sft
model: {{name: "builtin:random?layers=2&hidden=32&heads=2"}}
{adapter}
data:
  train: [{{path: "{rows}"}}]
  max_length: 128
  streaming: {streaming}
train: {{max_steps: 40, batch_size: 8, learning_rate: 1e-2, save_every: 7, threads: 1}}
"""


def command(recipe, folder, *options):
    import sys

    return [sys.executable, "-m", "tunekit", "sft", str(recipe), "-o", str(folder), "-n", "2", *options]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora streaming"])
def test_two_ranks_stopped_and_gone_on_with(kind, tmp_path, talks, text_of):
    """SIGTERM to the command in the middle of its training: both ranks stop at the same step, and go on from it."""
    import subprocess
    import time

    recipe = tmp_path / "recipe.yaml"
    adapter = "adapter: {kind: lora, r: 4, dropout: 0.1}" if "lora" in kind else ""
    recipe.write_text(RECIPE.format(rows=talks, adapter=adapter, streaming=str("streaming" in kind).lower()))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run(command(recipe, whole), cwd=tmp_path, check=True, capture_output=True)
    begun = subprocess.Popen(command(recipe, cut), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    metrics = cut / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and '"step": 10' in metrics.read_text()):
        assert begun.poll() is None and time.monotonic() < deadline, begun.stderr.read()
        time.sleep(0.01)
    begun.send_signal(signal.SIGTERM)
    said = begun.communicate(timeout=120)[1]
    assert begun.returncode == 143 and "with a checkpoint" in said, said
    steps = [int(path.name[5:]) for path in (cut / "checkpoints").iterdir()]
    assert 10 <= max(steps) < 40 and not (cut / "model").exists()
    subprocess.run(command(recipe, cut, "--resume"), cwd=tmp_path, check=True, capture_output=True)
    for name in ("samples.jsonl", "samples-1.jsonl"):
        assert (cut / name).read_text() == (whole / name).read_text()
    found = [[sha256_file(path) for path in (folder / "model").glob("*.safetensors")] for folder in (whole, cut)]
    assert found[0] == found[1] and found[0]
