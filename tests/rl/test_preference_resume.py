"""Runs of dpo, kto and reward that are stopped and gone on with, and runs on two ranks, end where a plain run ends."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tunekit.core.errors import Stopped

_spec = importlib.util.spec_from_file_location("of_resume", Path(__file__).parents[1] / "train" / "test_resume.py")
_resume = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_resume)
ask_at, text_of, go_on, weights, moved = _resume.ask_at, _resume.text_of, _resume.go_on, _resume.weights, _resume.moved

LORA = {"kind": "lora", "r": 4, "alpha": 8}
EVAL = {"data__eval": {"count": 3}, "eval__every": 2, "eval__batch_size": 2}
STEPS = 6
MATRIX = {
    "dpo lora": ("dpo", {"adapter": LORA, "dpo__loss": {"sigmoid": 1.0, "sft": 0.3}}),
    "dpo full": ("dpo", {**EVAL, "train__micro_batch_size": 2}),
    "kto": ("kto", {**EVAL, "adapter": LORA}),
    "kto seldom": ("kto", {"train__log_every": 5}),
    "reward lora": ("reward", {"adapter": LORA, "reward__centre": 0.1}),
    "reward full": ("reward", {**EVAL, "train__log_every": 4}),
    "simpo": ("simpo", {"adapter": LORA, "simpo__nll_weight": 0.2}),
}
QUICK = ("dpo full", "kto")


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in QUICK else [pytest.mark.slow]) for c in MATRIX])
def test_stopped_and_gone_on_with_is_as_if_never_stopped(case, preference_plan, run_plan, ask_at, go_on, text_of):
    """11 rows in batches of 4: three steps an epoch, so step 2 and 4 are in the middle of one."""
    method, sets = MATRIX[case]
    whole = preference_plan(method, train__max_steps=STEPS, train__batch_size=4, **sets)
    run_plan(whole)
    cut = moved(whole, 2)
    ask_at(2)
    with pytest.raises(Stopped):
        run_plan(cut)
    assert not (Path(cut.run_dir) / "model").exists()
    shutil.rmtree(Path(os.environ["HF_HOME"]) / "tunekit" / "reference", ignore_errors=True)  # it is found again
    done = go_on(cut)
    assert done.status == "done" and done.resumed[0].step in (2, 3)
    assert weights(cut) == weights(whole) and weights(whole)
    assert text_of(cut) == text_of(whole)


RECIPE = """\
method: {method}
model: {{name: "builtin:random?layers=2&hidden=32&heads=2"}}
data:
  train: [{{path: "{train}"}}]
  eval: [{{path: "{held}"}}]
  max_length: 128
{options}
train:
  {{epochs: 2, batch_size: 4, micro_batch_size: {micro}, learning_rate: 1e-2, warmup: 0, log_every: 1, threads: 1,
   precision: fp32}}
eval: {{every: 3, batch_size: 2, baseline: false}}
"""
OPTIONS = {"dpo": "dpo: {loss: {sigmoid: 1.0, sft: 0.5}}", "kto": "kto: {beta: 0.5}", "reward": "reward: {centre: 0.1}"}
MICRO = {"dpo": (4, 1), "kto": (4, 2), "reward": (2, 1)}
"""On one rank and on two. KTO's reference point is a micro-batch's of all ranks."""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "kto", "reward"])
def test_two_ranks_train_and_evaluate_as_one_process(method, tmp_path, preferences, write_rows, pair_of, verdict_of):
    """11 rows in batches of 4: the last of each epoch holds 3, so that a micro-batch of the second rank is empty."""
    from safetensors.torch import load_file

    row = verdict_of if method == "kto" else pair_of
    held = write_rows(tmp_path / "held.jsonl", [row(number) for number in range(100, 105)])
    found, weights = {}, {}
    for ranks, micro in zip((1, 2), MICRO[method], strict=True):
        folder, recipe = tmp_path / f"ranks-{ranks}", tmp_path / f"recipe-{ranks}.yaml"
        text = RECIPE.format(
            method=method, train=preferences(method), held=held, options=OPTIONS[method], micro=micro
        )
        recipe.write_text(text)
        command = [sys.executable, "-m", "tunekit", method, str(recipe), "-n", str(ranks), "-o", str(folder), "--quiet"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / f"hf-{ranks}")}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found[ranks] = {
            name: [line[name] for line in lines if name in line]
            for name in sorted({name for line in lines for name in line if "reward" in name or name in NAMES})
        }
        weights[ranks] = load_file(folder / "model" / "model.safetensors")
    assert len(found[1]["loss"]) == 6 and len(found[1]["eval_loss"]) == 2
    print(f"measured: {method}: {found}")
    assert found[1].keys() == found[2].keys() and "eval_reward_margin" in found[1]
    for name, values in found[1].items():
        assert found[2][name] == pytest.approx(values, rel=1e-4, abs=1e-5), name
    for name, value in weights[1].items():
        assert (value - weights[2][name]).abs().max() < 2e-4, name


NAMES = ("loss", "grad_norm", "eval_loss", "kl", "eval_kl", "logps_chosen", "logps_rejected")
