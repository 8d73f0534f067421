"""The kinds of quantization: what their blocks take, what they give to transformers, and what is refused beforehand."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from tunekit.core.errors import MachineError, UserError
from tunekit.core.registry import QUANTIZERS
from tunekit.model import kbit
from tunekit.recipe.schema import Block

KINDS = QUANTIZERS.names
FULL = AutoConfig.for_model("llama", hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2)


def quantized(**facts):
    config = AutoConfig.for_model("llama", hidden_size=64, num_hidden_layers=1, num_attention_heads=2)
    config.quantization_config = facts
    return config


def block(kind, **keys):
    return QUANTIZERS.load(kind).Config(kind=kind, **keys)


def whats(problems):
    return [problem.what for problem in problems]


def test_the_kinds():
    assert KINDS == ("awq", "bnb", "fp8", "gptq", "hqq", "mxfp4", "torchao")
    assert [kind for kind in KINDS if QUANTIZERS.load(kind).FROM_FULL] == ["bnb", "fp8", "hqq", "torchao"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_keeps_the_contract(kind):
    plugin = QUANTIZERS.load(kind)
    assert QUANTIZERS.help(kind)
    assert issubclass(plugin.Config, Block)
    plain = plugin.Config(kind=kind)
    assert plain == TypeAdapter(plugin.Config).validate_json(plain.model_dump_json())
    assert plugin.bits(plain) in (4, 8, 16)
    assert set(plugin.DEVICES) <= {"cpu", "cuda"}
    assert all(line.startswith("pip install ") for line in plugin.PACKAGES.values())
    with pytest.raises(ValidationError):
        plugin.Config(kind=kind, unknown=1)


def test_a_kind_is_known_to_transformers_by_its_method():
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KNOWN

    methods = {QUANTIZERS.load(kind).METHOD for kind in KINDS}
    assert {method + "_4bit" if method == "bitsandbytes" else method for method in methods} <= set(KNOWN)


def test_the_defaults_of_bnb_are_those_of_qlora():
    made = QUANTIZERS.load("bnb").quantization_config(block("bnb"), torch.bfloat16, None)
    assert isinstance(made, BitsAndBytesConfig)
    assert made.quantization_method() == "nf4" and made.bnb_4bit_use_double_quant
    assert made.bnb_4bit_compute_dtype == torch.bfloat16 and made.llm_int8_skip_modules is None


@pytest.mark.parametrize(("key", "value"), [("type", "nf4"), ("double_quant", False), ("compute_dtype", "float32")])
def test_a_key_of_four_bits_is_an_error_at_eight(key, value):
    with pytest.raises(ValidationError, match=f"{key} belongs to 4 bits"):
        block("bnb", bits=8, **{key: value})


@pytest.mark.parametrize(
    ("kind", "keys"),
    [("bnb", {"bits": 3}), ("bnb", {"type": "int4"}), ("torchao", {"type": "int4"}), ("gptq", {"bits": 5})],
)
def test_values_that_a_kind_has_not(kind, keys):
    with pytest.raises(ValidationError):
        block(kind, **keys)


def test_gptq_and_awq_load_kernels_that_have_a_backward_pass():
    for kind in ("gptq", "awq"):
        made = QUANTIZERS.load(kind).quantization_config(block(kind), torch.float16, None)
        assert made.backend == "auto_trainable" and "backend" in made.get_loading_attributes()


@pytest.mark.parametrize("kind", ["gptq", "awq", "mxfp4"])
def test_full_weights_are_not_quantized_by_kinds_that_cannot(kind):
    assert whats(kbit.problems(block(kind), FULL, "cpu")) == [
        f"the kind '{kind}' loads weights that are quantized already; these are not"
    ]


def test_transformers_cannot_make_hqq_weights_and_that_is_said():
    from transformers.quantizers.quantizer_hqq import HqqHfQuantizer

    with pytest.raises(NotImplementedError):  # the fault, as it would appear after the weights were read
        HqqHfQuantizer.get_quantize_ops(type("", (), {"quantization_config": type("", (), {"quant_method": "hqq"})})())
    (what,) = whats(kbit.problems(block("hqq"), FULL, "cuda"))
    assert what.endswith("cannot quantize to the kind 'hqq'")


def test_a_device_that_a_kind_has_not():
    assert whats(kbit.problems(block("fp8"), FULL, "cpu")) == ["the kind 'fp8' does not run on cpu"]
    assert kbit.problems(block("fp8"), FULL, "cuda") == []


def test_weights_of_an_unknown_kind_are_refused_by_name():
    (problem,) = kbit.problems(None, quantized(quant_method="aqlm"), "cuda")
    assert problem.what == "weights quantized as 'aqlm' cannot be trained on" and "gptq" in problem.fix


def test_four_bits_of_torchao_are_refused_because_transformers_does_not_train_on_them():
    config = quantized(quant_method="torchao", quant_type={"default": {"_type": "Int4WeightOnlyConfig"}})
    (what,) = whats(kbit.problems(None, config, "cpu"))
    assert what == "weights quantized as torchao with type Int4WeightOnlyConfig cannot be trained on"
    config = quantized(quant_method="torchao", quant_type={"default": {"_type": "Int8WeightOnlyConfig"}})
    assert kbit.problems(None, config, "cpu") == [] and kbit.quantized_of(config) == "torchao int8"


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"quant_method": "gptq", "bits": 8}, "gptq 8-bit"),
        ({"quant_method": "awq", "bits": 4, "zero_point": True}, "awq 4-bit"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bnb 8-bit"),
        ({"load_in_4bit": True}, "bnb 4-bit"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8 8-bit"),
    ],
)
def test_weights_on_disk_are_named(facts, name):
    assert kbit.quantized_of(quantized(**facts)) == name
    assert kbit.problems(None, quantized(**facts), "cuda") == []


def test_other_bits_than_those_of_the_weights():
    config = quantized(quant_method="gptq", bits=8)
    assert kbit.problems(block("gptq"), config, "cpu") == kbit.problems(block("gptq", bits=8), config, "cpu") == []
    (problem,) = kbit.problems(block("gptq", bits=4), config, "cpu")
    assert (problem.where, problem.what) == (
        "model.quantize.bits", "the weights are quantized already, with bits 8; the recipe has 4",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "config"), [("torchao", FULL), ("gptq", quantized(quant_method="gptq", bits=4)), ("fp8", FULL)]
)
def test_a_missing_package_is_told_with_the_line_that_installs_it(kind, config):
    packages = QUANTIZERS.load(kind).PACKAGES
    missing = [module for module in packages if importlib.util.find_spec(module) is None]
    assert [problem.fix for problem in kbit.missing_packages(kind)] == [packages[module] for module in missing]
    if not missing:
        pytest.skip(f"everything of {kind} is installed here")
    with pytest.raises(MachineError, match=f"weights of the kind '{kind}' need the package {missing[0]}") as caught:
        kbit.load_options(block(kind), torch.float32, "cuda", config)
    assert caught.value.fix == packages[missing[0]]


def test_nothing_is_missing_for_fp8_weights_that_are_unpacked():
    config = quantized(quant_method="fp8", weight_block_size=[128, 128])
    assert kbit.load_options(None, torch.float32, "cpu", config) == {"device_map": {"": "cpu"}}


def test_weights_lie_on_the_device_of_their_process(monkeypatch):
    def place(device):
        return kbit.load_options(block("bnb"), torch.float32, device, FULL)["device_map"]

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert [place("cpu"), place("cuda"), place("cuda:2")] == [{"": "cpu"}, {"": 0}, {"": 2}]
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [place("cpu"), place("cuda")] == [{"": "cpu"}, {"": 3}]


@pytest.mark.parametrize("wanted", ["int8", "float8"])
def test_torchao_weights_train_and_are_weighed(tmp_path, wanted):
    """By hand: one step a row, its largest weight over 127 (int8) or 448 (e4m3)."""
    pytest.importorskip("torchao")
    from peft import LoraConfig, get_peft_model

    full = AutoModelForCausalLM.from_config(FULL)
    full.save_pretrained(tmp_path)
    options = kbit.load_options(block("torchao", type=wanted), torch.float32, "cpu", FULL)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **options)
    assert kbit.is_quantized(model) == f"torchao {wanted}" and model.hf_quantizer.is_trainable
    weight = full.model.layers[0].mlp.up_proj.weight
    steps = weight.abs().amax(1, keepdim=True) / {"int8": 127, "float8": 448}[wanted]
    inside = (model.model.layers[0].mlp.up_proj.weight.dequantize() - weight).abs()
    assert (inside <= (0.51 * steps if wanted == "int8" else weight.abs() / 16 + steps)).all()
    linear = [m for n, m in full.named_modules() if type(m) is torch.nn.Linear and n != "lm_head"]
    saved = sum(3 * m.weight.numel() - 4 * m.weight.shape[0] for m in linear)
    assert kbit.weights_bytes(full) - kbit.weights_bytes(model) == pytest.approx(saved, abs=4 * 2000)
    kbit.prepare(model, checkpointing=False)
    model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    tokens = torch.arange(8)[None]
    model(tokens, labels=tokens).loss.backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in model.parameters() if p.requires_grad)


def test_a_block_is_read_from_a_recipe_as_it_is_written():
    wanted = TypeAdapter(QUANTIZERS.load("bnb").Config).validate_json(json.dumps({"kind": "bnb", "skip": ["k_proj"]}))
    assert wanted.skip == ("k_proj",) and wanted.bits == 4
    with pytest.raises(UserError, match="unknown quantization kind 'bmb'"):
        QUANTIZERS.load("bmb")
