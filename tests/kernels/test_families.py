"""Flat or padded, family by family: the loss and every gradient are those of each document alone."""

from __future__ import annotations

import pytest
from kernels_for_tests import (
    FAMILIES,
    alone_loss,
    build,
    distance,
    documents,
    flat_batch,
    gradients,
    made_flat,
    padded_batch,
)

PADDED = {  # and why
    "stablelm": "computes other values",
    "nemotron": "computes other values",
    "falcon": "computes other values",
    "bloom": "does not take it",
    "mpt": "computes other values",
    "gptj": "computes other values",
    "gpt_oss": "s_aux",
    "mamba": "mamba",
    "lfm2": "lfm2",
    "recurrent_gemma": "recurrent_gemma",
}
EITHER = ("phimoe", "llama4_text")  # their reach is longer than these documents, and only their mask knows it


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_loss_is_that_of_each_document_alone(kind, note):

    from tunekit.kernels.label_loss import LabelHead, find_tail

    model, rows = build(kind), documents()
    before = model.config._attn_implementation
    expected, theirs = alone_loss(model, rows)
    why = made_flat(model)
    assert kind in EITHER or bool(why) is (kind in PADDED)
    assert PADDED.get(kind, "") in why
    assert model.config._attn_implementation == (before if why else "tunekit")
    inputs, keep, targets = (padded_batch if why else flat_batch)(rows)
    head = model.get_output_embeddings()
    tail = find_tail(model, head)
    if tail is not None:
        check_tail(model, head, tail)
    found = LabelHead(head, tail).loss(model, inputs, keep, targets)
    model.zero_grad()
    found.total.backward()
    loss, worst = float(found.total.detach()), distance(gradients(model), theirs)
    note(f"{kind}: {why or 'flat'}; loss {abs(loss / expected - 1):.1e}, gradients {worst:.1e}, {tail}")
    assert loss == pytest.approx(expected, rel=1e-5)
    assert worst < 1e-5


def check_tail(model, head, tail):
    import torch

    seen = []
    handle = head.register_forward_hook(lambda _module, _args, output: seen.append(output))
    with torch.no_grad():
        logits = model(input_ids=torch.arange(4, 40)[None], use_cache=False).logits
    handle.remove()
    assert torch.allclose(tail(seen[0]), logits, atol=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_runs_flat_may_share_beginnings_and_what_does_not_may_not(kind):
    from contextlib import nullcontext

    from tunekit.train.isolation import shares_prefix

    model = build(kind)
    assert shares_prefix(model, nullcontext()) is False  # nobody has made it ready
    flat = made_flat(model) == ""
    assert shares_prefix(model, nullcontext()) is flat


@pytest.mark.parametrize("kind", ["bloom", "mpt", "mamba", "lfm2", "recurrent_gemma", "falcon", "gptj", "stablelm"])
def test_layers_that_see_the_row_as_it_lies_may_not_share(kind):
    """ALiBi, states, convolutions, and attention that is not told of documents: as if they had been made ready."""
    from contextlib import nullcontext

    from tunekit.kernels.attention import NAME, register
    from tunekit.train.isolation import shares_prefix

    register()
    model = build(kind)
    model.config._attn_implementation = NAME  # some refuse the proper way
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = NAME
    assert shares_prefix(model, nullcontext()) is False


@pytest.mark.parametrize("kind", ["llama", "stablelm"])
def test_asking_leaves_no_trace(kind):
    """Modes, random state, gradients; and a model that runs padded keeps its attention."""
    from contextlib import nullcontext

    import torch

    from tunekit.train.isolation import shares_prefix

    model = build(kind).train()
    model.model.layers[0].eval()
    torch.manual_seed(9)
    before, modes = torch.get_rng_state(), {name: module.training for name, module in model.named_modules()}
    made_flat(model)
    shares_prefix(model, nullcontext())
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_computes_nan_is_said_to():
    import torch

    model = build("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    assert "not finite" in made_flat(model)
