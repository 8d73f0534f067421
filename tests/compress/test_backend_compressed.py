"""llm-compressor's artefacts: the bytes of the arithmetic, the numbers of a direct call, and what is refused."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("llmcompressor", reason="the artefacts are llm-compressor's")

from backends_for_tests import GPT2, SMALL, TINY, backend, base, load, logits, make, problems, stored_types

from tunekit.compress.parity import world_prompts
from tunekit.core.errors import MachineError, UserError

compressed = backend("compressed")
KINDS = [
    ("gptq4", {}), ("gptq8", {"actorder": False}), ("rtn4", {"group_size": 32}), ("w8a8", {}),
    ("w8a8", {"smooth": 0.0}), ("fp8", {}),
]  # fmt: skip


@pytest.fixture(scope="module")
def calibration(tokenizer):
    """Token ids of rows of the embedded world, and as many others."""
    found = [tuple(item.input_ids) for item in world_prompts(tokenizer, 48)]
    return found[:24], found[24:]


def safetensors_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_bytes_are_the_arithmetics(kind, options, calibration, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    wanted, found = make(compressed, kind, tmp_path / "made", rows=calibration[0][:4], **options)
    told = capfd.readouterr()
    assert found == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["made"], "files beside the target"
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip
    # what stands there is of libraries' own start, once a process
    assert not [line for line in (told.out + told.err).splitlines() if "Calibrating" in line or "INFO" in line]


def direct(recipe, rows, folder):
    """The library called as its own documentation does, in one go."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoTokenizer

    model = load(TINY)
    data = Dataset.from_list([{"input_ids": list(row), "attention_mask": [1] * len(row)} for row in rows])
    oneshot(model=model, recipe=recipe, dataset=data, num_calibration_samples=len(rows),
            shuffle_calibration_samples=False, processor=AutoTokenizer.from_pretrained(TINY))  # fmt: skip
    model.save_pretrained(folder, save_compressed=True)
    return safetensors_of(folder)


@pytest.mark.parametrize("kind", ["gptq4", "w8a8", "fp8", "rtn4"])
def test_numbers_are_those_of_a_direct_call(kind, calibration, tmp_path):
    import torch
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    common = {"ignore": ["lm_head"], "targets": ["Linear"]}
    grouped = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
    groups = {"ignore": ["lm_head"], "config_groups": {"all": {"targets": ["Linear"], "weights": grouped}}}
    recipe = {
        "gptq4": lambda: GPTQModifier(**groups),
        "w8a8": lambda: [SmoothQuantModifier(smoothing_strength=0.8), GPTQModifier(scheme="W8A8", **common)],
        "fp8": lambda: QuantizationModifier(scheme="FP8_DYNAMIC", **common),
        "rtn4": lambda: QuantizationModifier(**groups),
    }[kind]()
    rows = calibration[0][:6]
    theirs = direct(recipe, rows, tmp_path / "direct")
    options = {"group_size": 64} if kind in ("gptq4", "rtn4") else {}
    make(compressed, kind, tmp_path / "ours", rows=rows, **options)
    ours = safetensors_of(tmp_path / "ours")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_gptq_is_nearer_to_its_source_than_rounding(calibration, tmp_path):
    import torch

    source = load(TINY)
    near = {}
    for kind in ("gptq4", "rtn4"):
        make(compressed, kind, tmp_path / kind, rows=calibration[0])
        other, sums = load(tmp_path / kind), []
        for row in calibration[1]:
            a, b = (torch.log_softmax(logits(model, row).double(), -1) for model in (source, other))
            sums.append((a.exp() * (a - b)).sum(-1).mean())
        near[kind] = float(torch.stack(sums).mean())
    print(f"measured: mean KL from the source {near}")
    assert near["gptq4"] < 0.8 * near["rtn4"]


def test_what_is_skipped_stays_as_it_is(tmp_path):
    wanted, found = make(compressed, "rtn4", tmp_path, skip=("layers.0", "up_proj"))
    assert found == wanted
    types = stored_types(tmp_path)
    assert types["model.layers.0.mlp.down_proj.weight"] == types["model.layers.1.mlp.up_proj.weight"] == "BF16"
    assert types["model.layers.1.mlp.down_proj.weight_packed"] == "I32"


def test_layers_of_different_widths_have_groups_of_their_own(tmp_path):
    """64 columns in groups of 64, 96 in groups of 32."""
    source = base(tmp_path / "source", "llama", **SMALL)
    wanted, found = make(compressed, "rtn4", tmp_path / "made", source)
    assert found == wanted
    tensors = safetensors_of(tmp_path / "made")
    assert tensors["model.layers.0.mlp.down_proj.weight_scale"].shape == (64, 3)
    assert tensors["model.layers.0.mlp.up_proj.weight_scale"].shape == (96, 1)
    assert logits(load(tmp_path / "made")).isfinite().all()


def test_smoothing_that_changes_the_model_is_refused(calibration, tmp_path):
    """Gemma 2 puts a norm of the name that the library looks for elsewhere: it would scale what is not joined."""
    source = _gemma(tmp_path)
    rows = [tuple(token % 256 for token in row) for row in calibration[0][:4]]
    with pytest.raises(UserError, match="SmoothQuant moved the logits of Gemma2ForCausalLM by") as raised:
        make(compressed, "w8a8", tmp_path / "w8a8", source, rows)
    print(f"measured: {raised.value}")
    assert raised.value.fix == "leave inputs as they are: smooth: 0"
    wanted, found = make(compressed, "w8a8", tmp_path / "plain", source, rows, smooth=0.0)
    assert found == wanted


def _gemma(folder):
    def change(model):
        for name, value in model.named_parameters():
            if "proj" in name or "embed" in name:
                value.normal_(std=0.2)

    return base(folder / "gemma2", "gemma2", change, **SMALL)


def test_rounding_in_place_of_gptq_is_told(tmp_path):
    """The library rounds where it cannot do what it was asked to, and only logs that."""
    with pytest.raises(MachineError, match=r"GPTQ failed for model\.layers\.0\.") as raised:
        make(compressed, "gptq4", tmp_path, rows=[(5, 6, 7)], damp=1e-30)
    assert "--calib" in raised.value.fix
    make(compressed, "gptq4", tmp_path, rows=[(5, 6, 7)])


def test_wishes_that_cannot_be(tmp_path):
    (found,) = problems(compressed, "fp8", group_size=64)
    assert found.what == "'group_size' is no option of fp8" and "none of its own" in found.fix
    (found,) = problems(compressed, "gptq4", smooth=0.5)
    assert "it takes actorder, damp, group_size" in found.fix
    (found,) = problems(compressed, "gptq4", group_size=128)
    assert "no group of 128 divides the 192 columns of 'model.layers.0.mlp.gate_proj.weight'" in found.what
    assert "gate_proj" in found.fix
    assert problems(compressed, "w8a8", base(tmp_path / "odd", "llama", **SMALL | {"intermediate_size": 90})) == []
    (found,) = problems(compressed, "rtn4", tmp_path / "odd")
    assert found.what.startswith("no group of 128, 64, 32 divides the 90 columns of 'model.layers.0.mlp.down_proj")
    (found,) = problems(compressed, "rtn4", base(tmp_path / "gpt2", "gpt2", **GPT2))
    assert "would pass over layers as GPT-2's" in found.what and "nf4" in found.fix
    experts = base(tmp_path / "moe", "mixtral", num_local_experts=2, **SMALL)
    assert "would pass over the experts" in problems(compressed, "gptq4", experts)[0].what
    assert compressed.DEVICES == {"awq4": ("cuda",)} and "awq4" in compressed.CALIBRATED


def test_the_folder_says_how_it_was_made(tmp_path):
    make(compressed, "rtn4", tmp_path, group_size=32)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    assert config["quant_method"] == "compressed-tensors" and config["format"] == "pack-quantized"
    assert config["ignore"] == ["lm_head"]
    assert config["config_groups"]["group_0"]["weights"]["group_size"] == 32
