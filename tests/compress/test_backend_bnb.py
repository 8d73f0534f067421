"""bitsandbytes' artefacts: the bytes of the arithmetic, the numbers of the library, and what is refused."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("bitsandbytes", reason="the artefacts are bitsandbytes'")

from backends_for_tests import GPT2, SMALL, TINY, backend, base, load, logits, make, problems, stored_types, weights

bnb = backend("bnb")
KINDS = [("nf4", {}), ("nf4", {"double_quant": False}), ("fp4", {}), ("int8", {})]


def direct(kind, double_quant=True, **options):
    """transformers' own way to the same weights."""
    import torch
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, **options)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=torch.bfloat16, **options,
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_bytes_are_the_arithmetics_and_numbers_the_librarys(kind, options, tmp_path):
    import torch

    wanted, found = make(bnb, kind, tmp_path, **options)
    print(f"measured: {kind} {options} {wanted:,.0f} expected, {found:,} found")
    assert found == pytest.approx(wanted, rel=0 if kind == "int8" else 2e-4)
    assert torch.equal(logits(load(tmp_path)), logits(load(TINY, quantization_config=direct(kind, **options))))


def test_weights_saved_after_a_pass_are_others_and_ours_are_not(tmp_path):
    """The fault: on some processors the first pass packs 4-bit weights anew, and they are saved so."""
    import torch

    spoiled = load(TINY, quantization_config=direct("nf4"))
    before = logits(spoiled)
    if not getattr(spoiled.model.layers[0].mlp.up_proj.weight.quant_state, "packing_format_for_cpu", False):
        pytest.skip("this processor does not pack")
    spoiled.save_pretrained(tmp_path / "spoiled")
    assert not torch.equal(logits(load(tmp_path / "spoiled")), before)
    make(bnb, "nf4", tmp_path / "ours")
    assert torch.equal(logits(load(tmp_path / "ours")), before)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_what_is_skipped_stays_as_it_is(kind, tmp_path):
    wanted, found = make(bnb, kind, tmp_path, skip=("layers.0", "up_proj"))
    assert found == pytest.approx(wanted, rel=2e-4)
    types = stored_types(tmp_path)
    assert types["model.layers.0.mlp.down_proj.weight"] == types["model.layers.1.mlp.up_proj.weight"] == "BF16"
    assert types["model.layers.1.mlp.down_proj.weight"] == {"nf4": "U8", "int8": "I8"}[kind]


def test_gpt2_is_quantized_too(tmp_path):
    source = base(tmp_path / "gpt2", "gpt2", **GPT2)
    for kind in ("nf4", "int8"):
        wanted, found = make(bnb, kind, tmp_path / kind, source)
        assert found == pytest.approx(wanted, rel=2e-3), kind
        assert stored_types(tmp_path / kind)["transformer.h.0.mlp.c_fc.weight"] in ("U8", "I8")
        load(tmp_path / kind)


def test_a_weight_beyond_sixteen_bits_is_refused_by_name(tmp_path, monkeypatch):
    import torch

    from tunekit.core.errors import UserError

    def change(model):
        model.model.layers[1].mlp.up_proj.weight[3, 4] = 70_000.0

    monkeypatch.setattr("bitsandbytes.functional.has_avx512bf16", lambda: False)  # nothing of nf4 is computed with
    source = base(tmp_path / "large", "llama", change, **SMALL)
    fault = load(source, quantization_config=direct("int8"))
    assert not torch.isfinite(fault.model.layers[1].mlp.up_proj.weight.SCB).all() or not torch.isfinite(
        logits(fault)
    ).all()
    with pytest.raises(UserError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' has numbers up to 70,000") as raised:
        make(bnb, "int8", tmp_path / "int8", source)
    assert "model.layers.1.mlp.up_proj" in raised.value.fix
    make(bnb, "int8", tmp_path / "skipped", source, skip=("model.layers.1.mlp.up_proj",))
    make(bnb, "nf4", tmp_path / "nf4", source)


def test_wishes_that_cannot_be(tmp_path):
    (found,) = problems(bnb, "int8", double_quant=True)
    assert "'double_quant' is no option of int8" in found.what and "skip" in found.fix
    (found,) = problems(bnb, "nf4", skip=("up_prj",))
    assert "no linear layer is called 'up_prj'" in found.what and "up_proj" in found.fix
    (found,) = problems(bnb, "nf4", skip=("layers",))
    assert found.what == "no linear layer is left to be quantized"
    experts = base(tmp_path / "moe", "mixtral", num_local_experts=2, **SMALL)
    (found,) = problems(bnb, "nf4", experts)
    assert "would pass over the experts ('model.layers.0.mlp.experts." in found.what
    quantized = base(tmp_path / "quantized", "llama", **SMALL)
    config = json.loads((quantized / "config.json").read_text(encoding="utf-8"))
    weights = bnb.problems("nf4", bnb.Config(), config | {"quantization_config": {"quant_method": "gptq"}}, [])
    assert [problem.what for problem in weights] == ["the weights are quantized already"]


@pytest.mark.parametrize("packs", [True, False])
def test_shapes_that_this_processor_cannot_run_are_refused_by_name(packs, base_of, monkeypatch):
    """The fault first: a model of plain transformers fails in the library, where the processor packs."""
    from bitsandbytes import functional

    odd = weights(base_of())  # feed-forward layers of 96
    if functional.has_avx512bf16():
        with pytest.raises(RuntimeError, match="is invalid for input of size"):
            logits(load(base_of(), quantization_config=direct("nf4")))
    monkeypatch.setattr(functional, "has_avx512bf16", lambda: packs)
    found = bnb.problems("nf4", bnb.Config(), odd[0].model, odd)
    assert [problem.where for problem in found] == (["skip"] if packs else [])
    assert not packs or "'model.layers.0.mlp.down_proj.weight' and 1 more are of 64 x 96" in found[0].what
    assert bnb.problems("nf4", bnb.Config(skip=("down_proj",)), odd[0].model, odd) == []
    for kind, fine in (("int8", odd), ("nf4", weights(TINY))):
        assert bnb.problems(kind, bnb.Config(), fine[0].model, fine) == []
