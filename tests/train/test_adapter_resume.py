"""A run with an adapter that is cut off and gone on with ends as if it had never stopped, whatever the kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunekit.core.files import sha256_file

STEPS = {"train__max_steps": 6, "train__save_every": 3, "train__keep_checkpoints": 5, "data__eval": {"count": 4}}
KINDS = {
    "lora": {"kind": "lora", "r": 4, "dropout": 0.1},
    "dora": {"kind": "lora", "r": 4, "dora": True, "plus": 16},
    "pissa": {"kind": "lora", "r": 4, "init": "pissa"},
    "pissa_niter": {"kind": "lora", "r": 4, "init": "pissa_niter_4"},
    "lora_ga": {"kind": "lora", "r": 4, "init": "lora_ga"},
    "eva": {"kind": "lora", "r": 4, "init": "eva"},
    "adalora": {"kind": "adalora"},
    "ia3": {"kind": "ia3"},
    "prompt": {"kind": "prompt", "virtual_tokens": 4},
    "p_tuning": {"kind": "p_tuning", "virtual_tokens": 4},
    "prefix": {"kind": "prefix", "virtual_tokens": 4},
    "vera": {"kind": "vera", "r": 4},
    "bottleneck": {"kind": "bottleneck", "size": 4},
    "freeze": {"kind": "freeze", "last_layers": 1},
    "tokens": {"kind": "trainable_tokens", "tokens": [3, 4, 5]},
    "pvera": {"kind": "pvera", "r": 4},  # a kind without a file, which draws numbers in training
}
QUICK = ("adalora",)


def weights(plan):
    (file,) = (Path(plan.run_dir) / "model").glob("*.safetensors")
    return sha256_file(file)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_stopped_and_gone_on_with(name, plan_of, run_plan, monkeypatch):
    from tunekit.core.progress import Silent
    from tunekit.train.pipeline import Job, run

    whole, cut = (plan_of(**STEPS, adapter=KINDS[name], model__name="builtin:tiny") for _ in range(2))
    run_plan(whole)
    monkeypatch.setattr("tunekit.train.session.Session._save", stop_here)
    with pytest.raises(Cut):
        run_plan(cut)
    monkeypatch.undo()
    last = Path(cut.run_dir) / "checkpoints" / "step-000006"
    assert last.is_dir()
    last.rename(Path(cut.run_dir) / "checkpoints" / "step-000006.damaged")  # goes on from step 3
    record = run(Job(cut, None, resume=True), Silent())
    assert [part.step for part in record.resumed] == [3]
    assert weights(cut) == weights(whole)


class Cut(Exception):
    pass


def stop_here(self, trainer):
    raise Cut
