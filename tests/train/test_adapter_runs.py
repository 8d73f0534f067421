"""Adapters in a run: where they begin, what the base is measured as, and what is refused before anything is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tunekit.core.errors import MachineError, UserError

LORA = {"kind": "lora", "r": 4}
SLOW = pytest.mark.slow
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
        ({"kind": "ia3"}, None, "the adapter is not of this kind and shape"),
        (LORA | {"targets": ["q_proj"]}, None, "the adapter is not of this kind and shape"),
        (LORA, "nan", "the adapter has values that are not finite"),
        (LORA, "gone", "holds no adapter"),
    ],
)
def test_an_adapter_that_does_not_fit_is_no_start(adapter, spoil, what, trained, plan_of, session_of, tmp_path):
    from safetensors.torch import save_file

    folder = tmp_path / "adapter"
    shutil.copytree(trained, folder)
    (folder / "MANIFEST.json").unlink()  # somebody else's
    if spoil == "nan":
        values = tensors(folder)
        next(iter(values.values())).view(-1)[0] = float("nan")
        save_file(values, folder / "adapter_model.safetensors")
    if spoil == "gone":
        (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=what):
        session_of(plan_of(model__name="builtin:tiny", adapter=adapter | {"start": str(folder)}))


@pytest.mark.parametrize(
    "adapter",
    [
        {"kind": "prefix"},
        pytest.param({"kind": "prompt"}, marks=SLOW),
        pytest.param(LORA | {"init": "pissa"}, marks=SLOW),
        pytest.param({"kind": "c3a"}, marks=SLOW),
    ],
)
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


@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=SLOW)])
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


@pytest.mark.parametrize(
    ("adapter", "what"),
    [
        (LORA | {"alpha": 8}, "its lora_alpha is 32"),
        (LORA | {"rslora": True}, "its use_rslora is False, the recipe's True"),
        ({"kind": "prompt"}, "vectors before the text cannot be started from others"),
    ],
)
def test_a_start_of_another_scale_is_another_adapter(adapter, what, trained, plan_of, session_of):
    with pytest.raises(UserError, match=what):
        session_of(plan_of(model__name="builtin:tiny", adapter=adapter | {"start": str(trained)}))


def test_a_start_on_another_base_or_with_a_changed_file_is_refused(trained, plan_of, session_of, tmp_path):
    from tunekit.core.errors import MachineError

    sizes = "builtin:tiny?init=random"
    with pytest.raises(UserError, match="is not the one that this was trained on"):
        session_of(plan_of(model__name=sizes, adapter=LORA | {"start": str(trained)}))
    folder = tmp_path / "adapter"
    shutil.copytree(trained, folder)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(MachineError, match="is not as it was saved"):
        session_of(plan_of(model__name="builtin:tiny", adapter=LORA | {"start": str(folder)}))


def test_a_prompt_that_starts_as_a_text_is_made_from_the_recipe(plan_of, session_of):
    import torch

    adapter = {"kind": "prompt", "init": "text", "text": "answer in one word", "virtual_tokens": 4}
    session, trainer = session_of(plan_of(model__name="builtin:tiny", adapter=adapter))
    from tunekit.train.adapters import begin_from_data

    begin_from_data(trainer.model, session.plan, session.inputs, session.prepared)
    ids = session.inputs.tokenizer("answer in one word", add_special_tokens=False)["input_ids"]
    table = trainer.model.get_base_model().get_input_embeddings().weight
    started = trainer.model.prompt_encoder["default"].embedding.weight
    assert torch.equal(started[0], table[ids[0]])


@pytest.mark.parametrize(
    ("adapter", "what"),
    [
        (LORA | {"extra": {"layers_to_transform": [0]}}, "is set by a key of its own, or by tunekit"),
        ({"kind": "boft", "extra": {"boft_block_size": 8}}, "is set by a key of its own, or by tunekit"),
        ({"kind": "fourierft", "extra": {"n_frequency": 8}}, "is set by a key of its own, or by tunekit"),
        (LORA | {"extra": {"eva_config": {"rho": 1.5}}}, "eva_config"),
        ({"kind": "cartridge", "targets": "nonsense"}, "unknown key 'adapter.targets'"),
        ({"kind": "road", "layers_to_transform": [0]}, "unknown key 'adapter.layers_to_transform'"),
    ],
)
def test_keys_that_would_pass_unheard_are_refused(adapter, what, plan_of):
    with pytest.raises(UserError) as caught:
        plan_of(model__name="builtin:tiny", adapter=adapter)
    assert any(what in problem.what for problem in caught.value.problems)


def test_what_peft_refuses_of_further_fields_is_refused(plan_of):
    from tunekit.model.load import load_model

    plan = plan_of(model__name="builtin:tiny", adapter={"kind": "adalora", "extra": {"use_dora": True}})
    with pytest.raises(UserError, match="does not fit the model"):
        load_model(plan, 50)


def test_a_kind_that_freezes_the_embeddings_does_not_take_new_tokens(plan_of, session_of):
    plan = plan_of(model__name="builtin:tiny", model__new_tokens=["<ask>"], adapter=FREEZE)
    with pytest.raises(UserError, match="kind freeze does not train the new tokens"):
        session_of(plan)


def test_a_recipe_read_back_from_a_plan_is_as_good_as_it_was(plan_of, monkeypatch):
    """A resumption reads it with every key named, defaults too."""
    import importlib.util

    from tunekit.plan.allowed import combination_problems
    from tunekit.plan.plan import Plan

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: found("json" if "galore" in name else name))
    plan = plan_of(model__name="builtin:tiny", adapter={"kind": "layerwise"})
    again = Plan.model_validate_json(plan.model_dump_json())
    assert combination_problems(again.recipe) == []
    with pytest.raises(UserError, match="brings its own optimizer"):
        plan_of(model__name="builtin:tiny", adapter={"kind": "layerwise"}, train__optimizer="sgd")


@pytest.mark.parametrize(
    ("adapter", "dtype"),
    [
        (LORA, "bfloat16"),
        (LORA | {"train_modules": ["lm_head"]}, "float32"),
        ({"kind": "ln_tuning"}, "float32"),
        (FREEZE, "float32"),
        ({"kind": "shadow", "targets": ".*layers[.][0-9]+"}, "float32"),
    ],
)
def test_what_is_trained_of_the_base_is_kept_in_float32_on_a_gpu(adapter, dtype, plan_of):
    from tunekit.plan.hardware import Gpu
    from tunekit.plan.resolve import resolve

    plan = plan_of(model__name="builtin:tiny", adapter=adapter)
    gpu = Gpu(name="a GPU", memory=10**10, bf16=True)
    machine = plan.hardware.model_copy(update={"device": "cuda", "gpus": (gpu,)})
    changed = {"train": plan.recipe.train.model_copy(update={"precision": "auto"})}
    changed["output"] = plan.recipe.output.model_copy(update={"dir": None})
    recipe = plan.recipe.model_copy(update=changed)
    assert resolve(recipe, Path("recipe.yaml"), machine).weights_dtype == dtype


@SLOW
def test_a_merge_stands_in_the_run_s_record_and_on_the_card(trained, tmp_path):
    from tunekit.compress.merge import Request, merge
    from tunekit.core.progress import Silent
    from tunekit.model.artefact import verify
    from tunekit.runs.layout import RunFolder
    from tunekit.runs.record import read_record

    run = trained.parent
    proof = merge(Request(run, tmp_path / "merged", "float32"), Silent())
    (part,) = read_record(RunFolder(run)).merges
    assert (part.name, part.dtype, part.mean_kl) == ("merged", "float32", proof["merged"]["mean_kl"])
    card = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert "library_name: transformers" in card and "AutoModelForCausalLM.from_pretrained(folder)" in card
    assert f"perplexity: base {proof['perplexity']['base']:.4g}" in card and "## How it was merged\n" in card
    assert verify(tmp_path / "merged") is not None  # the card is words: the manifest does not hold it


def test_adapters_of_two_runs_are_switched_on_one_base(trained, plan_of, run_plan):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tunekit.model.names import TINY

    plan = plan_of(model__name="builtin:tiny", adapter={"kind": "lora", "r": 8}, train__max_steps=2, train__seed=7)
    run_plan(plan)
    other = Path(plan.run_dir) / "model"
    ids = torch.arange(5, 25)[None]

    def logits(model):
        with torch.no_grad():
            return model.eval()(ids).logits.clone()

    alone = [logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32), folder))
             for folder in (trained, other)]  # fmt: skip
    both = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32), trained, "a")
    both.load_adapter(str(other), "b")
    assert torch.equal(logits(both), alone[0])
    both.set_adapter("b")
    assert torch.equal(logits(both), alone[1]) and not torch.equal(alone[0], alone[1])


def test_a_start_is_looked_for_before_anything_is_made(plan_of):
    from tunekit.train.pipeline import claim

    plan = plan_of(model__name="builtin:tiny", adapter=LORA | {"start": "runs/none"})
    with pytest.raises(UserError, match="'runs/none' hold no adapter") as refused:
        claim(plan)
    assert refused.value.problems[0].where == "adapter.start" and refused.value.exit_code == 2
    assert not Path(plan.run_dir).exists()


def test_a_run_s_folder_stands_for_its_adapter_beside_the_recipe_or_here(trained, tmp_path, monkeypatch):
    from tunekit.model.adapt import start_folder

    run = trained.parent
    monkeypatch.chdir(tmp_path)
    assert start_folder(str(run), Path("recipes")) == trained == start_folder(str(trained), Path("recipes"))
    (tmp_path / "recipes").mkdir()
    shutil.copytree(trained, tmp_path / "here")
    assert start_folder("here", Path("recipes")) == Path("here")
    shutil.copytree(trained, tmp_path / "recipes" / "here")
    assert start_folder("here", Path("recipes")) == Path("recipes/here")


def test_memory_that_is_short_is_not_taken_for_an_adapter_that_does_not_fit(plan_of, session_of, monkeypatch):
    import peft

    def short(*_):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(peft, "get_peft_model", short)
    with pytest.raises(RuntimeError, match="out of memory"):
        session_of(plan_of(model__name="builtin:tiny", adapter=LORA))
