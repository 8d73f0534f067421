"""Adapters in a run: where they begin, what the base is measured as, and what is refused before anything is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tunekit.core.errors import MachineError, UserError

LORA = {"kind": "lora", "r": 4}
FREEZE = {"kind": "freeze", "last_layers": 1}
CHECKPOINTING = {"train__gradient_checkpointing": True}


def perplexity(record):
    (task,) = [task for task in record.evaluation.tasks if task.name == "perplexity"]
    return task


@pytest.fixture(scope="module")
def trained(plan_of, run_plan):
    """A run of three steps, whose adapter others start from."""
    plan = plan_of(model__name="builtin:tiny", adapter=LORA, train__max_steps=3)
    run_plan(plan)
    return Path(plan.run_dir) / "model"


def tensors(folder):
    from safetensors.torch import load_file

    return load_file(Path(folder) / "adapter_model.safetensors")


def test_a_run_starts_from_an_adapter(trained, plan_of, session_of):
    import torch
    from peft import get_peft_model_state_dict

    plan = plan_of(model__name="builtin:tiny", adapter=LORA | {"start": str(trained)})
    trainer = session_of(plan)[1]
    begun, known = get_peft_model_state_dict(trainer.model), tensors(trained)
    assert begun.keys() == known.keys()
    assert all(torch.equal(begun[name], known[name]) for name in known)
    assert any(value.abs().sum() > 0 for name, value in begun.items() if "lora_B" in name)


@pytest.mark.parametrize(
    ("adapter", "spoil", "what"),
    [
        (LORA | {"r": 8}, None, "the adapter is not of this kind and shape"),
        ({"kind": "oft", "extra": {"oft_block_size": 8}}, None, "the adapter is not of this kind and shape"),
        (LORA | {"targets": ["q_proj"]}, None, "the adapter is not of this kind and shape"),
        (LORA, "nan", "the adapter has values that are not finite"),
        (LORA, "gone", "holds no adapter"),
    ],
)
def test_an_adapter_that_does_not_fit_is_no_start(adapter, spoil, what, trained, plan_of, session_of, tmp_path):
    from safetensors.torch import save_file

    folder = tmp_path / "adapter"
    shutil.copytree(trained, folder)
    if spoil == "nan":
        values = tensors(folder)
        next(iter(values.values())).view(-1)[0] = float("nan")
        save_file(values, folder / "adapter_model.safetensors")
    if spoil == "gone":
        (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=what):
        session_of(plan_of(model__name="builtin:tiny", adapter=adapter | {"start": str(folder)}))


@pytest.mark.parametrize("adapter", [{"kind": "prompt"}, {"kind": "prefix"}, LORA | {"init": "pissa"}, {"kind": "c3a"}])
def test_the_base_is_measured_without_the_adapter(adapter, plan_of, run_plan):
    """Many kinds do not begin with the base's output; the score before training is the base's all the same."""
    given = {"model__name": "builtin:tiny", "data__eval": {"count": 4}, "eval__baseline": True}
    if adapter["kind"] == "c3a":
        adapter = adapter | {"block_size": 8}
    scores = [perplexity(run_plan(plan_of(**given, adapter=kind))).base.value for kind in (LORA, adapter)]
    assert scores[1] == pytest.approx(scores[0], rel=1e-5)


def test_the_learning_rate_suits_the_kind_unless_it_is_named(plan_of):
    def rate(adapter, **given):
        return plan_of(adapter=adapter, train__learning_rate=None, **given).recipe.train.learning_rate

    from tunekit.core.registry import ADAPTERS

    assert rate(LORA) == 2e-4
    assert rate({"kind": "ia3"}) == ADAPTERS.load("ia3").LEARNING_RATE > 2e-4
    assert plan_of(adapter={"kind": "ia3"}, train__learning_rate=5e-5).recipe.train.learning_rate == 5e-5


@pytest.mark.parametrize(
    ("sets", "where", "what"),
    [
        ({"model__quantize": {"kind": "bnb"}}, "model.quantize", "cannot be trained in full"),
        ({"model__quantize": {"kind": "bnb"}, "adapter": {"kind": "hra"}}, "adapter.kind", "not train on weights of 4"),
        ({"model__quantize": {"kind": "bnb", "bits": 8}, "adapter": {"kind": "shira"}}, "adapter.kind", "of 8 bits"),
        ({"model__quantize": {"kind": "bnb"}, "adapter": FREEZE}, "adapter.kind", "freeze"),
        ({"adapter": {"kind": "lily"}}, "adapter.kind", "cannot be trained here: its routing looks at"),
        ({"adapter": {"kind": "prefix"}} | CHECKPOINTING, "train.gradient_checkpointing", "exclude"),
        ({"adapter": LORA | {"plus": 16}, "train__optimizer": "muon"}, "adapter.plus", "muon"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_by_the_plan(sets, where, what, plan_of):
    with pytest.raises(UserError) as caught:
        plan_of(**{"model__name": "builtin:tiny"} | sets)
    (problem,) = caught.value.problems
    assert problem.where == where and what in problem.what and (problem.fix or "cannot be trained" in problem.what)


def test_packages_that_are_missing_are_named_with_their_line(plan_of, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec

    def without(name, *rest):
        return None if name == "bitsandbytes" else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(MachineError) as caught:
        plan_of(model__name="builtin:tiny", model__quantize={"kind": "bnb"}, adapter=LORA)
    assert any("needs bitsandbytes" in p.what and "pip install" in p.fix for p in caught.value.problems)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_run_on_quantized_weights(bits, plan_of, run_plan):
    given = {"model__name": "builtin:tiny", "model__quantize": {"kind": "bnb", "bits": bits}, "adapter": LORA}
    given |= {"data__eval": {"count": 4}, "eval__baseline": True, "train__learning_rate": 4e-3}
    plan = plan_of(**given, train__max_steps=12)
    record = run_plan(plan)
    found = perplexity(record)
    assert found.tuned.value < found.base.value
    assert record.training.padded_because is None and record.model.parameters > 2_000_000
    manifest = json.loads((Path(plan.run_dir) / "model" / "MANIFEST.json").read_text())
    assert (manifest["quantize"]["kind"], manifest["quantize"]["bits"]) == ("bnb", bits)
    assert not any("quant" in name for name in tensors(Path(plan.run_dir) / "model"))


def test_weights_that_lie_quantized_on_the_disk_are_not_trained_in_full(plan_of, session_of, tmp_path):
    from tunekit.model.load import load_model

    plan = plan_of(model__name="builtin:tiny", model__quantize={"kind": "bnb"}, adapter=LORA)
    model = load_model(plan).model.get_base_model()
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    model.config.save_pretrained(tmp_path / "base")
    session_of(plan)[0].inputs.tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match=r"weights of 4 bits \(bnb\) cannot be trained in full"):
        load_model(plan_of(model__name=str(tmp_path / "base")))
