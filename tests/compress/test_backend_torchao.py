"""torchao's artefacts: the bytes of the arithmetic, the numbers of the library, and what is refused."""

from __future__ import annotations

import pytest

pytest.importorskip("torchao", reason="the artefacts are torchao's")

from backends_for_tests import GPT2, TINY, backend, base, load, logits, make, problems, stored_types

ao = backend("torchao")
KINDS = {
    "ao_int8": "Int8WeightOnlyConfig",
    "ao_int8_dynamic": "Int8DynamicActivationInt8WeightConfig",
    "ao_float8": "Float8WeightOnlyConfig",
}


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_the_arithmetics_and_numbers_the_librarys(kind, tmp_path):
    import torch
    import torchao.quantization as library
    from transformers import TorchAoConfig

    wanted, found = make(ao, kind, tmp_path)
    assert found == wanted
    direct = load(TINY, quantization_config=TorchAoConfig(getattr(library, KINDS[kind])()))
    assert torch.equal(logits(load(tmp_path)), logits(direct))
    assert not torch.equal(logits(load(tmp_path)), logits(load(TINY)))


def test_what_is_skipped_stays_as_it_is(tmp_path):
    wanted, found = make(ao, "ao_int8", tmp_path, skip=("layers.0", "up_proj"))
    assert found == wanted
    types = stored_types(tmp_path)
    assert types["model.layers.0.mlp.down_proj.weight"] == types["model.layers.1.mlp.up_proj.weight"] == "BF16"
    assert types["model.layers.1.mlp.down_proj._weight_qdata"] == "I8"


def test_wishes_that_cannot_be(tmp_path):
    (found,) = problems(ao, "ao_int8", group_size=64)
    assert "'group_size' is no option of ao_int8" in found.what
    (found,) = problems(ao, "ao_float8", base(tmp_path / "gpt2", "gpt2", **GPT2))
    assert "would pass over layers as GPT-2's ('transformer.h.0.attn.c_attn'" in found.what
    assert ao.DEVICES == {"ao_int4": ("cuda",)}


def test_four_bits_and_what_they_need():
    import importlib.util

    found = [problem.what for problem in problems(ao, "ao_int4")]
    assert found[0].startswith("groups must divide a row: of 'model.layers.0.mlp.gate_proj.weight' with 192 columns")
    assert ("ao_int4 needs the package mslk" in found) == (importlib.util.find_spec("mslk") is None)
    assert "there are no groups of 96" in [problem.what for problem in problems(ao, "ao_int4", group_size=96)]
