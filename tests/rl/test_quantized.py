"""Preferences, rewards and teachers on weights of 4 bits: what is trained, what stays, and how runs go on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import policy_for_tests as policies
import pytest
import test_policy_resume as resume
import test_preference_resume as preference_resume

from tunekit.core.errors import Stopped

ask_at, text_of, go_on = resume.ask_at, preference_resume.text_of, preference_resume.go_on
LORA = {"kind": "lora", "r": 4, "alpha": 8}
NF4 = {"model__name": "builtin:tiny", "model__quantize": {"kind": "bnb", "bits": 4}, "adapter": LORA}
INT8 = NF4 | {"model__quantize": {"kind": "bnb", "bits": 8}}
DRAWS = {"ppo": {"value_model": "shared"}, "ppo separate": {"value_model": "separate"}, "grpo": {}, "rloo": {}}
METHODS = ["dpo", "kto", "orpo", "simpo", "cpo", "reward", *DRAWS, "distill offline", "distill onpolicy"]
QUICK = ("dpo", "reward", "ppo separate", "distill onpolicy")
ONPOLICY = {"distill onpolicy": {"max_new_tokens": 6}}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return policies.write_prompts(tmp_path_factory.mktemp("prompts"), 7)


@pytest.fixture(scope="module")
def quantized(plan_of, preference_plan, prompts):
    """A plan of a method on weights of 4 bits."""

    def build(case, **sets):
        method = case.split()[0]
        given = {"train__max_steps": 3, "train__batch_size": 4} | NF4 | sets
        if case in DRAWS:
            block = {"rollout_steps": 1, "passes": 2, "beta": 0.1, "generations": 2} | DRAWS[case]
            return policies.policy_plan(plan_of, prompts, method, block=block | given.pop("block", {}), **given)
        if method == "distill":
            block = {"teacher": "builtin:tiny", "mode": case.split()[1]} | ONPOLICY.get(case, {})
            return plan_of("distill", distill=block, **given)
        return preference_plan(method, **given)

    return build


def packed(model):
    """The bytes of the quantized weights, by name."""
    import torch

    return {
        name: value.detach().view(torch.uint8).clone()
        for name, value in model.named_parameters()
        if value.dtype in (torch.uint8, torch.int8)
    }


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in QUICK else [pytest.mark.slow]) for c in METHODS])
def test_the_adapter_learns_and_the_packed_weights_stay(case, quantized, ready_of):
    import torch

    _, trainer = ready_of(quantized(case))
    before = packed(trainer.model)
    assert len(before) > 20
    own = {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert any("lora_" in name for name in own)
    trainer.train()
    after, now = packed(trainer.model), dict(trainer.model.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    moved = [name for name, value in own.items() if not torch.equal(value, now[name])]
    assert len(moved) == len(own), sorted(own.keys() - set(moved))
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 3 and all(loss == loss for loss in losses)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("reference", ["initial", "base"])
def test_the_policy_begins_as_its_reference(precision, reference, quantized, ready_of, monkeypatch, tmp_path):
    """To the bit: a batch of all rows is computed as one of a few."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    plan = quantized("dpo", dpo={"reference": reference}, train__precision=precision, train__max_steps=1)
    _, trainer = ready_of(plan)
    trainer.train()
    line = trainer.state.log_history[0]
    assert line["loss"] == pytest.approx(0.693147, abs=1e-6) and abs(line["reward_margin"]) < 1e-6


@pytest.mark.parametrize("reference", ["initial", "base"])
def test_answers_are_drawn_from_what_they_are_held_to(reference, quantized, ready_of):
    """At first there is no KL; after a step there is, and without the adapter the model is as it was."""
    from tunekit.evaluate.mode import evaluating
    from tunekit.rl.drawing import _logps

    _, trainer = ready_of(quantized("grpo", block={"reference": reference}, train__max_steps=4))
    trainer.train()
    lines = [line["kl"] for line in trainer.state.log_history if "kl" in line]
    assert lines[0] == 0 and lines[-1] != 0
    rollout = next(iter(trainer.rollouts.values()))
    kept = [drawn.numbers["reference"] for drawn in rollout.answers]
    _, fresh = ready_of(quantized("grpo", block={"reference": reference}))
    with evaluating(fresh.model):
        found = _logps(fresh, fresh.model, [rollout])[0]
    for one, other in zip(kept, found, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_values_of_8_bits_round_by_what_else_is_in_the_batch(quantized, ready_of, monkeypatch, tmp_path):
    """LLM.int8() looks for large inputs in the whole batch: the reference is near, and is not refused."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    rows = {"data__train": [{"path": "builtin:preferences", "limit": 16}], "train__batch_size": 16}
    for size in (16, 1):  # the second time it is found again, computed with other rows beside each
        _, trainer = ready_of(quantized("dpo", **(INT8 | rows), train__micro_batch_size=size))
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        assert losses[0] == pytest.approx(0.693147, abs=5e-2)


@pytest.mark.parametrize("case", ["dpo", pytest.param("kto", marks=pytest.mark.slow)])
def test_stopped_pairs_go_on_as_if_never_stopped(case, quantized, run_plan, ask_at, go_on, text_of):
    whole = quantized(case, train__max_steps=4)
    run_plan(whole)
    cut = preference_resume.moved(whole, 2)
    ask_at(2)
    with pytest.raises(Stopped):
        run_plan(cut)
    shutil.rmtree(Path(os.environ["HF_HOME"]) / "tunekit" / "reference", ignore_errors=True)
    done = go_on(cut)
    assert done.status == "done" and done.resumed[0].step == 2
    assert preference_resume.weights(cut) == preference_resume.weights(whole) and preference_resume.weights(whole)
    assert text_of(cut) == text_of(whole)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ppo separate", "ppo", "grpo"])
def test_stopped_among_windows_goes_on_as_if_never_stopped(case, quantized, run_plan, ask_at, go_on):
    block = {"rollout_steps": 2, "passes": 2}
    whole = quantized(case, block=block, train__max_steps=4, data__eval={"count": 2}, eval__every=3)
    run_plan(whole)
    cut = whole.model_copy(update={"run_dir": f"{whole.run_dir}-3"})
    ask_at(3)  # in the middle of a window
    with pytest.raises(Stopped):
        run_plan(cut)
    done = go_on(cut)
    assert done.status == "done" and done.resumed[0].step == 3
    assert resume.told(cut) == resume.told(whole)
