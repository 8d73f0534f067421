"""Another model as the reference: a run of LoRA, a folder of one, a whole model; of 4 bits, in mixed precision."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tunekit.core.errors import MachineError, UserError
from tunekit.rl.other_reference import check_reference

LORA = {"kind": "lora", "r": 4, "alpha": 8}
TINY = {"model__name": "builtin:tiny", "adapter": LORA}
NF4 = {"model__quantize": {"kind": "bnb", "bits": 4}}
LN2 = 0.6931472


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """Nothing is found again of another test."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


@pytest.fixture(scope="module")
def tuned(plan_of, run_plan):
    """The folder of a run of LoRA on the embedded model that has learnt something."""
    plan = plan_of("sft", train__max_steps=4, **TINY)
    run_plan(plan)
    return plan.run_dir


def first(trainer):
    """The first logged line; nothing has moved by then."""
    trainer.train()
    return trainer.state.log_history[0]


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "bf16"])
def test_the_reference_is_computed_in_the_arithmetic_of_training(method, precision, tuned, preference_plan, ready_of):
    """A step's batch is one of the reference's as well: they agree to the bit, also in mixed precision."""
    start = {"adapter": LORA | {"start": tuned}, "train__precision": precision}
    line = first(ready_of(preference_plan(method, 4, train__batch_size=4, **(TINY | start)))[1])
    assert line["loss"] == pytest.approx(LN2 if method == "dpo" else 0.5, abs=1e-6)
    assert abs(line["reward_margin"]) < 1e-6


@pytest.mark.parametrize(
    "quantized", [{}, pytest.param(NF4, marks=pytest.mark.slow)], ids=["whole weights", "4 bits"]
)
def test_an_adapter_is_put_on_its_base(quantized, tuned, preference_plan, ready_of):
    """The policy that begins with it begins as this reference, to the bit; a fresh one does not."""
    sets = TINY | quantized | {"train__batch_size": 4, "dpo": {"reference": tuned}}
    line = first(ready_of(preference_plan("dpo", 4, **(sets | {"adapter": LORA | {"start": tuned}})))[1])
    assert line["loss"] == pytest.approx(LN2, abs=1e-6) and abs(line["reward_margin"]) < 1e-6
    _, trainer = ready_of(preference_plan("dpo", 4, **sets))
    assert not any("value" in name or "reference" in name for name, _ in trainer.model.named_parameters())
    assert abs(first(trainer)["reward_margin"]) > 1e-3


def test_its_values_are_those_of_peft(tuned, preference_plan, ready_of):
    """Answer by answer, with peft and torch alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tunekit.model.names import resolve_name

    _, trainer = ready_of(preference_plan("dpo", 5, dpo={"reference": f"{tuned}/model"}, **TINY))
    base = AutoModelForCausalLM.from_pretrained(resolve_name("builtin:tiny").location, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, f"{tuned}/model").eval()
    for row in trainer.train_dataset:
        ids, at = row["input_ids"], len(row["input_ids"]) - sum(row["branches"])
        begin = at
        for size, value in zip(row["branches"], row["reference_logps"], strict=True):
            whole = ids[:begin] + ids[at : at + size]
            with torch.no_grad():
                logps = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)[begin - 1 : -1]
            own = logps.gather(1, torch.tensor(whole[begin:])[:, None])[:, 0]
            trained = torch.tensor([label >= 0 for label in row["labels"][at : at + size]])
            assert value == pytest.approx(float(own[trained].sum()), rel=1e-5)
            at += size


@pytest.mark.slow
def test_a_whole_model_of_4_bits(preference_plan, ready_of):
    """transformers' Trainer takes no quantized weights without an adapter; it need not."""
    plan = preference_plan("dpo", 4, dpo={"reference": "builtin:tiny"}, train__batch_size=4, **(TINY | NF4))
    line = first(ready_of(plan)[1])
    assert line["loss"] == pytest.approx(LN2, abs=1e-6)


def test_what_cannot_be_a_reference_is_told_at_its_key(tuned, preference_plan, tmp_path):
    def told(name, error=UserError):
        recipe = preference_plan("dpo", 4, dpo={"reference": str(name)}, **TINY).recipe
        with pytest.raises(error) as caught:
            check_reference(recipe, tmp_path)
        problem = caught.value.problems[0]
        assert problem.fix
        return problem

    assert told("builtin:tini").where == "dpo.reference"
    problem = told(tmp_path / "nothing")
    assert problem.where == "dpo.reference" and "nothing" in problem.what
    (tmp_path / "empty").mkdir()
    assert "no model in this folder" in told(tmp_path / "empty").what
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(Path(tuned) / "plan.json", unfinished)
    assert "tunekit resume" in told(unfinished).fix
    damaged = tmp_path / "damaged"
    shutil.copytree(Path(tuned) / "model", damaged)
    with (damaged / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x01\x02\x03")
    assert "not as it was saved" in told(damaged, MachineError).what
    fine = preference_plan("dpo", 4, dpo={"reference": Path(tuned).name}, **TINY).recipe
    check_reference(fine, Path(tuned).parent)  # beside the recipe
