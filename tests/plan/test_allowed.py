"""What goes together: the table speaks in the plan, before anything is loaded, with a reason and a way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunekit.core.errors import MachineError, UserError
from tunekit.core.registry import ADAPTERS
from tunekit.model.adapter_facts import EXAMPLES
from tunekit.plan.allowed import UNKNOWN, Allowed, allowed, combination_problems, is_measured, missing_for
from tunekit.plan.hardware import Hardware
from tunekit.plan.resolve import resolve
from tunekit.recipe.document import parse
from tunekit.recipe.load import check

MACHINE = Hardware(cpu="a processor", cores=2, memory=8_000_000_000, cpu_bf16=False)
REFUSED = {kind for kind in ADAPTERS.names if hasattr(ADAPTERS.load(kind), "REFUSED")}


def recipe(kind=None, bits=None, *, model="builtin:tiny", train=None, **keys):
    value = {"method": "sft", "model": {"name": model}, "data": {"train": [{"path": "builtin:instructions"}]}}
    value["train"] = train or {}
    if kind:
        value["adapter"] = {"kind": kind} | EXAMPLES.get(kind, {}) | keys
    if bits:
        value["model"]["quantize"] = {"kind": "bnb", "bits": bits}
    return check(parse(json.dumps(value), "recipe.yaml"))


def said(*args, **keys):
    return [(found.where, found.what, found.fix) for found in combination_problems(recipe(*args, **keys))]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", sorted(set(ADAPTERS.names) - REFUSED))
def test_quantized_weights_are_refused_where_the_table_says_so(kind, bits):
    can = allowed(kind).four if bits == 4 else allowed(kind).eight
    found = said(kind, bits)
    if can:
        assert found == []
    else:
        ((where, what, fix),) = found
        assert (
            where == "adapter.kind"
            and what == f"an adapter of kind {kind} does not train on weights of {bits} bits (bnb)"
        )
        assert "lora" in fix and kind not in fix.split(": ")[1].split(", ")


def test_hand_checked_cells_of_the_table():
    """Those of the kinds that most people use, as they were measured with PEFT 0.21 and bitsandbytes 0.50."""
    assert allowed("lora") == Allowed(four=True, eight=True, merges=True, conv1d=True)
    assert allowed("prefix") == Allowed(four=True, eight=True, merges=False, conv1d=True)
    assert allowed("hra") == Allowed(four=False, eight=False, merges=True, conv1d=False)
    assert allowed("lokr") == Allowed(four=False, eight=True, merges=True, conv1d=False)
    assert allowed("shira") == Allowed(four=True, eight=False, merges=True, conv1d=False)


def test_nothing_is_promised_of_a_kind_that_nobody_measured():
    assert not is_measured("newest") and allowed("newest") == UNKNOWN == Allowed(False, False, False, False)


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_a_refused_kind_says_why(kind):
    ((where, what, _),) = said(kind)
    assert where == "adapter.kind" and what.startswith(f"an adapter of kind {kind} cannot be trained here: ")
    with pytest.raises(UserError, match=f"{kind} cannot be trained here"):
        resolve(recipe(kind), Path("recipe.yaml"), MACHINE)


@pytest.mark.parametrize(("kind", "keys"), [("prefix", {}), ("cartridge", {"num_virtual_tokens": 4})])
def test_cached_keys_and_checkpointing_exclude_each_other(kind, keys):
    ((where, what, _),) = said(kind, train={"gradient_checkpointing": True}, **keys)
    assert where == "train.gradient_checkpointing" and kind in what
    assert said("lora", train={"gradient_checkpointing": True}) == said(kind, **keys) == []


@pytest.mark.parametrize("targets", ["all-linear", "attention", "mlp"])
def test_shadow_goes_around_layers(targets):
    ((where, what, fix),) = said("shadow", targets=targets)
    assert where == "adapter.targets" and "whole decoder layers" in what and "targets:" in fix


def test_quantized_weights_need_an_adapter_and_weights():
    ((where, what, fix),) = said(None, 4)
    assert where == "model.quantize" and "cannot be trained in full" in what and "lora" in fix
    ((_, what, _),) = said("lora", 4, model="builtin:random?layers=1")
    assert what == "fresh weights are not quantized"


def test_a_package_that_is_missing_is_named_with_its_line():
    (found,) = missing_for(recipe("layerwise"), MACHINE)
    assert "needs galore_torch" in found.what and found.fix == "pip install galore-torch"
    with pytest.raises(MachineError, match="galore_torch"):
        resolve(recipe("layerwise"), Path("recipe.yaml"), MACHINE)
    assert missing_for(recipe("lora"), MACHINE) == []
