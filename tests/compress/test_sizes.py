"""Bytes of an artefact, matrix by matrix: what belongs to which, and one layer that was left out among many."""

from __future__ import annotations

import importlib.util
import json
import math

import pytest
from backends_for_tests import TINY, backend, make, weights
from typer.testing import CliRunner

from tunekit.cli.app import app
from tunekit.compress import sizes
from tunekit.compress.proof import SIZE

KINDS = {"bnb": ("nf4", "int8"), "plain": ("bfloat16",), "compressed": ("rtn4", "fp8"), "torchao": ("ao_int8",),
         "gguf": ("q4_0", "q4_k_m")}  # fmt: skip
EVERY = [(library, kind) for library, kinds in KINDS.items() for kind in kinds]
LEFT = "model.layers.1.self_attn.q_proj"


def library_of(name):
    found = backend(name)
    for module in found.PACKAGES:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    return found


def wanted(library, kind, source):
    return [(w, library.bits(kind, library.Config(), w) * math.prod(w.shape) / 8) for w in weights(source)]


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_every_byte_belongs_to_a_weight(name, kind, tmp_path):
    library = library_of(name)
    _, size = make(library, kind, tmp_path / "made")
    expected = wanted(library, kind, TINY)
    found = sizes.by_weight(tmp_path / "made", [weight for weight, _ in expected])
    assert sum(found.values()) == size and found.keys() == {weight.name for weight, _ in expected}
    for weight, size in expected:
        assert found[weight.name] == pytest.approx(size, rel=0.01), weight.name
    assert list(sizes.odd(kind, tmp_path / "made", expected)) == []


@pytest.mark.parametrize(("name", "kind"), [one for one in EVERY if one[0] != "plain"])
def test_one_layer_that_was_left_out_hides_in_the_sum_and_is_found(name, kind, base_of, tmp_path, monkeypatch):
    library, source = library_of(name), base_of(dtype="bfloat16")
    if name == "bnb":  # nothing is computed with it here
        monkeypatch.setattr("bitsandbytes.functional.has_avx512bf16", lambda: False)
    if kind == "q4_k_m":
        pytest.skip("no row here is as long as a block of it")
    _, size = make(library, kind, tmp_path / "made", source, skip=(LEFT.removeprefix("model."),))
    expected = wanted(library, kind, source)
    total = sum(bytes_ for _, bytes_ in expected)
    assert abs(size - total) < SIZE * total, "the sum says nothing of it"
    (problem,) = sizes.odd(kind, tmp_path / "made", expected)
    assert problem.what.startswith(f"'{LEFT}.weight' takes 8,192 bytes; as {kind} it comes to ")
    assert "more are off" not in problem.what and "left out" in problem.fix


def test_a_turned_layer_of_eight_bits_is_no_fault(base_of, tmp_path):
    """GPT-2's weights lie (inputs, outputs); each output has a scale."""
    library, source = library_of("bnb"), base_of("gpt2")
    make(library, "int8", tmp_path / "made", source)
    assert list(sizes.odd("int8", tmp_path / "made", wanted(library, "int8", source))) == []


def test_the_command_refuses_it_by_name(base_of, here, tmp_path, monkeypatch):
    """One layer is passed over, and the arithmetic knows of no reason."""
    library, source = library_of("bnb"), base_of(dtype="bfloat16")
    honest, whole = library.bits, library.Config()
    monkeypatch.setattr(library, "bits", lambda kind, config, weight: honest(kind, whole, weight))
    to = json.dumps([{"kind": "int8", "skip": [LEFT.removeprefix("model.")]}])
    sets = (f"to={to}", "proof.rows=3", "proof.answers=1", "proof.new_tokens=2")
    options = [word for one in sets for word in ("--set", one)]
    done = CliRunner().invoke(app, ["quantize", str(source), "--to", "int8", "-o", str(tmp_path / "made"), *options])
    assert done.exit_code == 5, done.output
    assert f"'{LEFT}.weight' takes 8,192 bytes" in " ".join(done.output.split())
    assert "its tensors take" not in done.output
    assert list(tmp_path.iterdir()) == []
