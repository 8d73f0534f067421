"""Quantized weights in memory: loaded as asked, safe to evaluate before training, and as small as they should be."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes import functional as bitsandbytes
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tunekit.core.errors import UserError
from tunekit.core.registry import QUANTIZERS
from tunekit.model import kbit

LAYERS, HIDDEN, INNER, ROWS = 2, 64, 128, 256
LINEAR = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // 2 + 3 * HIDDEN * INNER)  # two heads of keys for four
REST = 2 * ROWS * HIDDEN + (2 * LAYERS + 1) * HIDDEN  # embeddings, head, norms
TOKENS = torch.arange(12)[None] * 7 % ROWS


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=ROWS, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def block(kind="bnb", **keys):
    return QUANTIZERS.load(kind).Config(kind=kind, **keys)


def load(folder, wanted=None, dtype=torch.float32, compute=None):
    options = kbit.load_options(wanted, compute or dtype, "cpu", AutoConfig.from_pretrained(folder))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)


def with_lora(model):
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


def gradient(model, tokens=TOKENS):
    model.train()
    model.zero_grad()
    model(tokens, labels=tokens).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None])


def evaluate(model):
    model.eval()
    with torch.no_grad():
        model(TOKENS)


@pytest.mark.filterwarnings("ignore:bitsandbytes..gemv_4bit. an autograd kernel")
@pytest.mark.skipif(not bitsandbytes.has_avx512bf16(), reason="bitsandbytes packs on CPUs with AVX512-BF16 only")
def test_without_the_guard_an_evaluation_takes_gradients_away(llama):
    model = load(llama, block())
    model.requires_grad_(False)
    model = with_lora(model)
    before = gradient(model)
    evaluate(model)
    assert gradient(model).norm() < 0.7 * before.norm()


@pytest.mark.parametrize("keys", [{}, {"type": "fp4"}, {"double_quant": False}, {"bits": 8}])
def test_an_evaluation_leaves_gradients_and_weights_as_they_were(llama, keys):
    model = load(llama, block(**keys))
    kbit.prepare(model, checkpointing=False)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model = with_lora(model)
    before = gradient(model)
    evaluate(model)
    assert torch.equal(gradient(model), before)
    after = model.get_base_model().state_dict()
    kept = {name.replace(".base_layer", ""): tensor for name, tensor in after.items() if "lora" not in name}
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights.items())


def test_training_and_evaluation_compute_the_same(llama):
    model = load(llama, block())
    kbit.prepare(model, checkpointing=False)
    with torch.no_grad():
        assert torch.equal(model.train()(TOKENS).logits, model.eval()(TOKENS).logits)


def test_prepared_weights_are_frozen_norms_wide_and_the_head_as_it_was(llama):
    model = load(llama, block(), torch.bfloat16)
    assert any(parameter.requires_grad for parameter in model.parameters())
    tables = model.lm_head.weight.clone(), model.model.embed_tokens.weight.clone()
    kbit.prepare(model, checkpointing=False)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    types = {name: p.dtype for name, p in model.named_parameters() if p.is_floating_point()}
    assert {name for name, dtype in types.items() if dtype == torch.float32} == {n for n in types if "norm" in n}
    assert types["lm_head.weight"] == types["model.embed_tokens.weight"] == torch.bfloat16
    assert torch.equal(model.lm_head.weight, tables[0]) and torch.equal(model.model.embed_tokens.weight, tables[1])
    assert model(TOKENS).logits.dtype == torch.bfloat16


def test_a_wide_norm_alone_would_break_the_head(llama):
    model = load(llama, block(), torch.bfloat16)
    model.model.norm.weight.data = model.model.norm.weight.data.float()
    with pytest.raises(RuntimeError, match="same dtype"):
        model(TOKENS)


def test_wide_norms_do_not_move_the_result_away_from_the_exact_one(llama):
    exact = load(llama, block(compute_dtype="float32"))(TOKENS).logits
    narrow = load(llama, block(), torch.bfloat16)
    wide = copy.deepcopy(narrow)
    kbit.prepare(wide, checkpointing=False)
    errors = [(model(TOKENS).logits.float() - exact).abs().mean() for model in (wide, narrow)]
    assert errors[0] <= 1.1 * errors[1]


def test_norms_with_a_bias_and_transposed_layers(tmp_path):
    config = AutoConfig.for_model("gpt2", vocab_size=ROWS, n_embd=64, n_layer=2, n_head=2, n_positions=64)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = load(tmp_path, block(), torch.bfloat16)
    kbit.prepare(model, checkpointing=False)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert {p.dtype for n, p in model.named_parameters() if "ln_" in n} == {torch.float32}
    assert model.transformer.h[0].mlp.c_fc.bias.dtype == torch.bfloat16
    assert model(TOKENS).logits.dtype == torch.bfloat16


def test_checkpointing_gets_its_gradients(llama):
    def trained(checkpointing):
        model = load(llama, block())
        kbit.prepare(model, checkpointing=checkpointing)
        return model

    def recomputed(model, reentrant):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model.disable_input_require_grads()  # what this version of transformers does of itself, and others do not
        return gradient(with_lora(model))

    whole = gradient(with_lora(trained(False)))
    assert torch.equal(recomputed(trained(True), reentrant=True), whole)
    assert torch.equal(recomputed(trained(True), reentrant=False), whole)
    assert torch.equal(recomputed(trained(False), reentrant=False), whole)
    without = pytest.raises(RuntimeError, match="does not require grad")
    with pytest.warns(UserWarning, match="None of the inputs"), without:
        recomputed(trained(False), reentrant=True)


def test_eight_bits_do_not_flood_the_log(llama, caplog):
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.NOTSET)
    model = load(llama, block(bits=8))
    evaluate(model)
    assert sum("inputs will be cast" in record.message for record in caplog.records) == 7 * LAYERS
    caplog.clear()
    kbit.prepare(model, checkpointing=False)
    evaluate(model)
    assert not caplog.records


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
def test_four_bit_weights_are_those_of_bitsandbytes_itself(llama, kind, double):
    full = load_file(llama / "model.safetensors")
    model = load(llama, block(type=kind, double_quant=double))
    seen = 0
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = full[f"{name}.weight"]
            data, state = bitsandbytes.quantize_4bit(weight, compress_statistics=double, quant_type=kind)
            own = bitsandbytes.dequantize_4bit(module.weight.data, module.weight.quant_state)
            assert torch.equal(own, bitsandbytes.dequantize_4bit(data, state))
            error = (own - weight).pow(2).mean() / weight.var()
            assert 0.005 < error < 0.03, name
            assert module.weight.quant_state.nested is double
            assert module.compute_dtype == torch.float32
            seen += 1
    assert seen == 7 * LAYERS


def test_eight_bit_weights_are_those_of_bitsandbytes_itself(llama):
    full = load_file(llama / "model.safetensors")
    model = load(llama, block(bits=8))
    seen = 0
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear8bitLt):
            weight = full[f"{name}.weight"]
            data, scales, _ = bitsandbytes.int8_vectorwise_quant(weight.half())
            assert torch.equal(module.weight.data, data) and torch.equal(module.weight.SCB, scales)
            own = bitsandbytes.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
            # a step of a row is its largest weight / 127; rounding errs by half of it at most, and float16 by 2^-11
            steps = weight.abs().amax(1, keepdim=True) / 127
            assert ((own - weight).abs() <= 0.5 * steps + weight.abs() * 2**-10).all()
            seen += 1
    assert seen == 7 * LAYERS


@pytest.mark.parametrize(("wanted", "found"), [("auto", "bfloat16"), ("float32", "float32"), ("float16", "float16")])
def test_four_bit_weights_are_multiplied_in_the_asked_type(llama, wanted, found):
    model = load(llama, block(compute_dtype=wanted), torch.float32, torch.bfloat16)
    types = {m.compute_dtype for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)}
    assert types == {getattr(torch, found)}


@pytest.mark.parametrize("bits", [4, 8])
def test_skipped_layers_and_the_head_are_left(llama, bits):
    model = load(llama, block(bits=bits, skip=("layers.0.mlp", "k_proj")))
    left = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    mlp = {f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")}
    assert left == {"lm_head"} | mlp | {f"model.layers.{i}.self_attn.k_proj" for i in range(LAYERS)}


def test_transformers_own_list_would_miss_a_layer_and_lose_the_head(llama):
    """Why names are resolved here: a part of a name matches nothing there, and a list takes the place of the head."""
    from transformers import BitsAndBytesConfig

    theirs = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["layers.0.mlp"])
    model = AutoModelForCausalLM.from_pretrained(llama, quantization_config=theirs)
    assert [name for name, module in model.named_modules() if type(module) is torch.nn.Linear] == []


def test_a_skipped_name_that_no_layer_has_is_an_error_with_the_nearest(llama):
    with pytest.raises(UserError, match="no linear layer is called 'down_prj'") as caught:
        load(llama, block(skip=("o_proj", "down_prj")))
    assert caught.value.fix == "did you mean 'down_proj'?"


def test_bytes_of_full_and_quantized_weights(llama):
    """By hand: half a byte a weight, a scale for each 64 weights, and tables of 16 (and 256) floats a layer."""
    full = AutoModelForCausalLM.from_pretrained(llama)
    other = 4 * REST + full.model.rotary_emb.inv_freq.nbytes + full.model.rotary_emb.original_inv_freq.nbytes
    layers = 7 * LAYERS
    assert kbit.weights_bytes(full) == 4 * LINEAR + other
    single = LINEAR // 2 + 4 * LINEAR // 64 + layers * 4 * 16
    assert kbit.weights_bytes(load(llama, block(double_quant=False))) == single + other
    nested = LINEAR // 64 + layers * 4 * (256 + 1 + 1)  # one byte a scale; a second scale and a mean for the layer
    assert kbit.weights_bytes(load(llama, block())) == LINEAR // 2 + layers * 4 * 16 + nested + other
    rows = LAYERS * (3 * HIDDEN + 2 * HIDDEN // 2 + 2 * INNER)
    model = load(llama, block(bits=8))
    assert kbit.weights_bytes(model) == LINEAR + 4 * rows + other
    model(TOKENS)  # moves the scales
    assert kbit.weights_bytes(model) == LINEAR + 4 * rows + other


def test_tied_tables_count_once(tmp_path):
    config = AutoConfig.for_model("gpt2", vocab_size=ROWS, n_embd=64, n_layer=1, n_head=2, n_positions=64)
    model = AutoModelForCausalLM.from_config(config)
    assert kbit.weights_bytes(model) == 4 * sum(p.numel() for p in model.parameters())


RESIDENT = """
import sys, torch
from pathlib import Path
from transformers import AutoConfig, AutoModelForCausalLM
import bitsandbytes
from tunekit.core.registry import QUANTIZERS
from tunekit.model import kbit

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssFile:")))

folder, bits = sys.argv[1], int(sys.argv[2])
block = QUANTIZERS.load("bnb").Config(kind="bnb", bits=bits)
options = kbit.load_options(block, torch.float32, "cpu", AutoConfig.from_pretrained(folder))
before = resident()
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
loaded = resident()
kbit.prepare(model, checkpointing=False)
print(kbit.weights_bytes(model), loaded - before, resident() - before)
"""


@pytest.mark.slow
def test_weights_of_300_million_parameters_take_a_third_or_less(tmp_path):
    config = AutoConfig.for_model(
        "llama", vocab_size=1024, hidden_size=1024, intermediate_size=4096, num_hidden_layers=18,
        num_attention_heads=16, num_key_value_heads=16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    parameters = model.num_parameters()
    assert 3.0e8 < parameters < 3.1e8
    model.save_pretrained(tmp_path)
    del model
    for bits, part in ((4, 1 / 7), (8, 1 / 3.5)):
        done = subprocess.run(
            [sys.executable, "-c", RESIDENT, str(tmp_path), str(bits)], capture_output=True, text=True, check=True
        )
        counted, loaded, prepared = map(int, done.stdout.split())
        print(f"{bits} bits of {parameters} parameters: {counted=} {loaded=} {prepared=}")
        assert loaded > 4 * parameters  # the fault: file and buffers stay, together more than the weights in float32
        assert counted <= part * 4 * parameters
        assert counted <= prepared <= part * 4 * parameters + 50e6  # and the libraries that loading has brought in


@pytest.fixture(scope="module")
def saved(llama, tmp_path_factory):
    """A model saved with 4-bit weights."""
    folder = tmp_path_factory.mktemp("saved")
    load(llama, block()).save_pretrained(folder)
    return folder


def test_weights_saved_in_four_bits_load_as_they_are(llama, saved):
    config = AutoConfig.from_pretrained(saved)
    assert kbit.quantized_of(config) == "bnb 4-bit" and kbit.kind_of(None, config) == "bnb"
    assert kbit.quantized_of(AutoConfig.from_pretrained(llama)) is None
    for wanted in (None, block()):
        model = load(saved, wanted)
        assert kbit.is_quantized(model) == "bnb 4-bit"
        kbit.prepare(model, checkpointing=False)
        first = load(llama, block())
        kbit.prepare(first, checkpointing=False)
        assert torch.equal(model(TOKENS).logits, first(TOKENS).logits)


def test_the_run_says_in_what_type_saved_weights_are_multiplied(saved):
    for wanted, found in ((None, torch.bfloat16), (block(compute_dtype="float16"), torch.float16)):
        model = load(saved, wanted, torch.float32, torch.bfloat16)
        assert {m.compute_dtype for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)} == {found}
    config = AutoConfig.from_pretrained(saved)
    assert config.quantization_config["bnb_4bit_compute_dtype"] == "float32"  # the caller's own is not changed


@pytest.mark.parametrize(
    ("wanted", "what"),
    [
        (block("torchao"), r"quantized already \(bnb 4-bit\); model.quantize asks for 'torchao'"),
        (block(bits=8), "with bits 4; the recipe has 8"),
        (block(type="fp4"), "with type nf4; the recipe has fp4"),
        (block(double_quant=False), "with double_quant True; the recipe has False"),
        (block(skip=("o_proj",)), "what was skipped is settled"),
    ],
)
def test_another_wish_than_the_saved_weights_is_refused_by_name(saved, wanted, what):
    with pytest.raises(UserError, match=what) as caught:
        load(saved, wanted)
    assert "leave model.quantize out" in caught.value.fix


def test_weights_made_full_again_are_no_longer_quantized(llama):
    model = load(llama, block())
    assert kbit.is_quantized(model) == "bnb 4-bit"
    assert kbit.is_quantized(model.dequantize()) is None


def test_full_weights_without_a_wish_need_no_options(llama):
    assert kbit.load_options(None, torch.float32, "cpu", AutoConfig.from_pretrained(llama)) == {}


def test_saved_fp8_weights_are_unpacked_where_there_is_no_gpu(llama, tmp_path):
    tensors, by_hand = load_file(llama / "model.safetensors"), {}
    for name in [name for name in tensors if "_proj" in name]:
        weight = tensors.pop(name)
        scale = weight.abs().max() / 448  # the largest number of e4m3; a matrix here is less than one block
        tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale.reshape(1, 1)
        by_hand[name] = tensors[name].float() * scale
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((llama / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert kbit.quantized_of(AutoConfig.from_pretrained(tmp_path)) == "fp8 8-bit"
    model = load(tmp_path)
    assert kbit.is_quantized(model) is None
    weights = model.state_dict()
    for name, weight in by_hand.items():
        torch.testing.assert_close(weights[name].float(), weight, rtol=2**-8, atol=0)


MXFP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


def test_saved_mxfp4_experts_are_unpacked(tmp_path):
    config = AutoConfig.for_model(
        "gpt_oss", vocab_size=ROWS, hidden_size=64, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, num_local_experts=2, num_experts_per_tok=1, layer_types=["full_attention"],
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    expert = "model.layers.0.mlp.experts.gate_up_proj"
    shapes = {expert: (2, 64, 2), "model.layers.0.mlp.experts.down_proj": (2, 64, 1)}  # experts, outputs, blocks of 32
    torch.manual_seed(3)
    for name, shape in shapes.items():
        del tensors[name]
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(118, 124, shape, dtype=torch.uint8)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    facts = json.loads((tmp_path / "config.json").read_text())
    facts["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    assert kbit.quantized_of(AutoConfig.from_pretrained(tmp_path)) == "mxfp4 4-bit"
    model = load(tmp_path, dtype=torch.bfloat16)
    assert kbit.is_quantized(model) is None
    found = model.state_dict()[expert].float()
    blocks, scales = tensors[f"{expert}_blocks"], tensors[f"{expert}_scales"]
    for e, row, column in ((0, 0, 0), (0, 5, 1), (1, 63, 30), (1, 17, 33), (0, 40, 63)):
        byte = int(blocks[e, row, column // 32, column % 32 // 2])
        value = MXFP4[byte >> 4 if column % 2 else byte & 15] * 2.0 ** (int(scales[e, row, column // 32]) - 127)
        assert found[e, column, row] == value
