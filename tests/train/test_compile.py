"""When torch compiles a model, that the compiled one trains alike, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunekit.train.arguments import compiles

ENOUGH = 1e14


@pytest.mark.parametrize(
    ("method", "sets", "flops", "expected"),
    [
        ("pretrain", {"data__packing": True}, ENOUGH, True),
        ("pretrain", {"data__packing": True}, 1e12, False),  # over before the code was made
        ("pretrain", {"data__packing": False}, ENOUGH, False),  # rows of all lengths
        ("sft", {"data__packing": True}, ENOUGH, False),  # examples kept apart: flat rows, of all lengths
        ("sft", {"train__compile": "on"}, 0, True),
        ("pretrain", {"data__packing": True, "train__compile": "off"}, ENOUGH, False),
    ],
)
def test_auto_compiles_batches_of_one_shape_in_long_runs(method, sets, flops, expected, plan_of):
    assert compiles(plan_of(method, **sets), flops) is expected


def test_without_a_compiler_auto_does_not_and_on_is_refused(plan_of, monkeypatch):
    from tunekit.core.errors import MachineError
    from tunekit.plan import hardware

    plan = plan_of("pretrain", data__packing=True)
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    assert not compiles(plan, ENOUGH)
    with pytest.raises(MachineError, match=r"needs a C\+\+ compiler"):
        plan_of(train__compile="on")


def test_it_is_decided_once_a_run_that_is_made_longer_keeps_to_it(plan_of):
    from tunekit.train.resume import _as_settled

    short, long = (plan_of("pretrain", data__packing=True, train__max_steps=steps) for steps in (1, 10**6))
    assert compiles(long, ENOUGH) and not compiles(short, ENOUGH / 1000)
    begun = short.model_copy(update={"compiled": False})
    assert not compiles(_as_settled(begun, long), ENOUGH)
    asked = plan_of("pretrain", data__packing=True, train__compile="on")
    assert compiles(_as_settled(begun, asked), ENOUGH)  # another word of the recipe


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, {"kind": "lora", "r": 4}])
def test_a_compiled_run_has_the_same_losses_and_says_that_it_is_padded(adapter, plan_of, run_plan, note):
    found = {}
    for wanted in ("on", "off"):
        held = {"data__eval": {"count": 4}, "eval__every": 2}
        plan = plan_of(train__compile=wanted, train__max_steps=3, adapter=adapter, **held)
        record = run_plan(plan)
        lines = map(json.loads, (Path(plan.run_dir) / "metrics.jsonl").read_text().splitlines())
        found[wanted] = [line[name] for line in lines for name in ("loss", "eval_loss") if name in line]
        assert bool(record.training.padded_because) is (wanted == "on")
    note(f"compiled {found['on']}, not {found['off']}")
    assert len(found["on"]) == 5 and found["on"] == pytest.approx(found["off"], rel=1e-5)
