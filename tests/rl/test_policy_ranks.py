"""Two processes draw the same answers as one, and learn the same from them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import policy_for_tests as policies
import pytest

SHARED = {"max_new_tokens": 6, "beta": 0.1}
BLOCKS = {
    "grpo": {"generations": 3, "rollout_steps": 2, "passes": 2, **SHARED},
    "ppo": {"generations": 2, "passes": 4, **SHARED},
}


def run_on(ranks, method, folder, *, rows, model):
    """The lines of metrics, of rollouts and of each rank's samples."""
    recipe, out = folder / f"{ranks}.yaml", folder / f"ranks-{ranks}"
    document = {
        "method": method,
        "model": {"name": model},
        "data": {"train": [{"path": str(rows)}], "eval": {"count": 3}, "max_length": 64},
        method: {"reward": [{"function": f"{rows.parent / 'mine.py'}:vowels"}], **BLOCKS[method]},
        "train": {
            "epochs": 2, "batch_size": 4, "micro_batch_size": 1, "learning_rate": 1e-3, "schedule": "constant",
            "warmup": 0, "log_every": 1, "threads": 1, "precision": "fp32",
        },
        "eval": {"every": 3, "baseline": False},
    }  # fmt: skip
    recipe.write_text(json.dumps(document))
    done = subprocess.run(
        [sys.executable, "-m", "tunekit", method, str(recipe), "-n", str(ranks), "-o", str(out), "--quiet"],
        cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    names = ["metrics.jsonl", "rollouts.jsonl", "samples.jsonl", "samples-1.jsonl"][: 2 + ranks]
    return [[json.loads(line) for line in (out / name).read_text().splitlines()] for name in names]


@pytest.mark.parametrize("method", ["grpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_two_ranks_are_as_one(method, tmp_path, note):
    """Nine prompts in batches of 4: of the third, which has one, the second rank gets nothing."""
    rows, model = policies.write_prompts(tmp_path / "rows", 12), policies.write_model(tmp_path / "model")
    one, answers, samples = run_on(1, method, tmp_path, rows=rows, model=model)
    two, others, *shared = run_on(2, method, tmp_path, rows=rows, model=model)
    window = 4  # steps of the first window
    first = [[line for line in each if line["step"] == 1] for each in (answers, others)]
    assert len(first[0]) == len(first[1]) == 4
    for line, other in zip(*first, strict=True):
        assert other["kl"] == pytest.approx(line["kl"], abs=1e-4)
        assert other | {"kl": 0} == line | {"kl": 0}
    lines, both = ([line for line in each if "loss" in line] for each in (one, two))
    assert len(lines) == len(both) == (12 if method == "grpo" else 24)
    for line, other in zip(lines[:window], both, strict=False):
        for name in ("reward", "answer_tokens", "ended_share", "reward_spread", "kl"):
            assert other[name] == pytest.approx(line[name], rel=1e-6, abs=1e-4), name
    for name in ("loss", "grad_norm"):
        assert both[0][name] == pytest.approx(lines[0][name], rel=1e-4, abs=1e-6), name
    note(f"{method}: gradient norms {[[line['grad_norm'] for line in each[:2]] for each in (lines, both)]}")
    note(f"{method}: rewards {[[round(line['reward'], 4) for line in each] for each in (lines, both)]}")
    for line, other in zip(lines, both, strict=True):  # rounding may turn a token, and with it an answer
        assert other["reward"] == pytest.approx(line["reward"], abs=0.1)
    for step, line in enumerate(samples):
        seen = [tuple(row) for rank in shared for row in rank[step]["rows"]]
        assert sorted(seen) == sorted(map(tuple, line["rows"]))
    held_out = [[line["eval_reward"] for line in each if "eval_reward" in line] for each in (one, two)]
    assert len(held_out[0]) == len(held_out[1]) >= 2
    assert held_out[1] == pytest.approx(held_out[0], abs=0.1)
    steps = [line["step"] for line in answers]
    assert steps == sorted(steps) and [line["step"] for line in others] == steps
