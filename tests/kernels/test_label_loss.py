"""Loss at labelled positions, in pieces, against F.cross_entropy on all logits."""

from __future__ import annotations

import warnings

import pytest
from kernels_for_tests import build, distance, documents, flat_batch, gradients, made_flat

ROWS, WIDTH, HIDDEN, VOCABULARY = 2, 7, 16, 53


class Model:
    """A head on given hidden states: as much of a causal language model as `LabelHead` sees."""

    def __init__(self, head, hidden, bend=None):
        self.head, self.hidden, self.bend = head, hidden, bend or (lambda logits: logits)

    def __call__(self, **inputs):
        from types import SimpleNamespace

        assert inputs.pop("use_cache") is False
        return SimpleNamespace(logits=self.bend(self.head(self.hidden)))


def parts_of(bias=False, large=1.0, dtype="float32", frozen=False):
    """(head, hidden states (B, T, E), keep, targets); the third label is the likeliest token, so that one is right."""
    import torch

    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(HIDDEN, VOCABULARY, bias=bias)
    with torch.no_grad():
        for each in head.parameters():
            each.copy_(torch.randn(each.shape, generator=generator) * large)
    head = head.to(getattr(torch, dtype)).requires_grad_(not frozen)
    hidden = torch.randn(ROWS, WIDTH, HIDDEN, generator=generator).to(head.weight.dtype).requires_grad_()
    keep = torch.tensor([0, 2, 3, 8, 12])
    targets = torch.randint(0, VOCABULARY, (5,), generator=generator)
    targets[2] = head(hidden).reshape(-1, VOCABULARY)[3].argmax()
    return head, hidden, keep, targets


def ids():
    import torch

    return {"input_ids": torch.zeros((ROWS, WIDTH), dtype=torch.long)}


def dense(head, hidden, keep, targets, bend=None, smoothing=0.0, upstream=1.0):
    """(loss, right tokens, gradients of hidden, weight, bias), from all logits."""
    import torch

    logits = head(hidden).float()
    logits = (logits if bend is None else bend(logits)).reshape(-1, VOCABULARY)[keep]
    loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    leaves = [hidden, *(each for each in head.parameters() if each.requires_grad)]
    correct = int((logits.argmax(-1) == targets).sum())
    return float(loss.detach()), correct, torch.autograd.grad(loss * upstream, leaves)


def pieces(head, hidden, keep, targets, tail=None, smoothing=0.0, upstream=1.0, bend=None):
    """The same by `LabelHead`."""
    import torch

    from tunekit.kernels.label_loss import LabelHead, Tail

    found = LabelHead(head, tail or Tail()).loss(Model(head, hidden, bend), ids(), keep, targets, smoothing)
    leaves = [hidden, *(each for each in head.parameters() if each.requires_grad)]
    grads = torch.autograd.grad(found.total * upstream, leaves, allow_unused=True)
    return float(found.total.detach()), int(found.correct), grads


def same(found, expected, tolerance=1e-5):
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert found[1] == expected[1]
    for ours, theirs in zip(found[2], expected[2], strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert float((ours - theirs).norm()) <= tolerance * float(theirs.norm())


@pytest.fixture
def small_pieces(monkeypatch):
    """Two labelled positions at a time."""
    from tunekit.kernels import token_logps

    monkeypatch.setattr(token_logps, "PIECE_BYTES", {"cpu": 2 * 4 * VOCABULARY, "cuda": 2 * 4 * VOCABULARY})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1.0, 0.0625, 3.0])
@pytest.mark.parametrize("cap", [None, 8.0])
@pytest.mark.parametrize("upstream", [1.0, -2.5])
def test_loss_and_gradients_are_those_of_all_logits(bias, smoothing, scale, cap, upstream, small_pieces):
    import torch

    from tunekit.kernels.label_loss import Tail

    parts = parts_of(bias)

    def bend(logits):
        return logits * scale if cap is None else cap * torch.tanh(logits * scale / cap)

    expected = dense(*parts, bend, smoothing, upstream)
    found = pieces(*parts, Tail(scale, cap), smoothing, upstream, bend)
    same(found, expected)
    assert found[1] >= 1


def test_tied_logits_count_as_the_argmax_counts_them():
    """Rounded logits are often equal: in bfloat16 above 16 they are 0.125 apart."""
    import torch

    from tunekit.kernels.label_loss import LabelHead, Tail

    head, hidden, keep, targets = parts_of()
    with torch.no_grad():
        head.weight.zero_()
    found = LabelHead(head, Tail()).loss(Model(head, hidden), ids(), keep, targets)
    assert int(found.correct) == int((targets == 0).sum())


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 100])
def test_the_size_of_the_pieces_changes_nothing(piece, monkeypatch):
    from tunekit.kernels import token_logps

    monkeypatch.setattr(token_logps, "PIECE_BYTES", {"cpu": piece * 4 * VOCABULARY, "cuda": 0})
    same(pieces(*parts_of(True)), dense(*parts_of(True)))


@pytest.mark.parametrize("count", [0, 1])
def test_no_label_and_one_label(count):
    import torch

    head, hidden, keep, targets = parts_of(True)
    found = pieces(head, hidden, keep[:count], targets[:count])
    expected = dense(head, hidden, keep[:count], targets[:count])
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    for ours, theirs in zip(found[2], expected[2], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
        assert bool(ours.any()) is (count > 0)


def test_large_logits_do_not_overflow():
    parts = parts_of(large=200.0)
    same(pieces(*parts), dense(*parts))


def test_a_frozen_head_gets_no_gradient(small_pieces):
    parts = parts_of(True, frozen=True)
    found = pieces(*parts)
    assert len(found[2]) == 1
    same(found, dense(*parts))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights(dtype, small_pieces, note):
    """Not further from the values in double precision than torch's own path, but for rounding."""
    import torch

    parts = parts_of(True, dtype=dtype, large=0.3)
    double = torch.nn.Linear(HIDDEN, VOCABULARY).double()
    double.load_state_dict({name: value.double() for name, value in parts[0].state_dict().items()})
    exact = dense_double(double, *parts[1:])
    for name, found in (("ours", pieces(*parts)), ("torch", dense(*parts))):
        worst = max(float((a.double() - b).norm() / b.norm()) for a, b in zip(found[2], exact[1], strict=True))
        note(f"{dtype} weights, {name}: loss {abs(found[0] / exact[0] - 1):.1e}, gradients {worst:.1e}")
        assert worst < {"bfloat16": 1e-2, "float16": 2e-3}[dtype]
        assert found[0] == pytest.approx(exact[0], rel=5e-3)


def dense_double(head, hidden, keep, targets):
    import torch

    states = hidden.detach().double().requires_grad_()
    logits = head(states).reshape(-1, VOCABULARY)[keep]
    loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    return float(loss.detach()), torch.autograd.grad(loss, [states, *head.parameters()])


def test_autocast_computes_in_bfloat16_and_gives_gradients_in_float32(small_pieces, note):
    import torch

    head, hidden, keep, targets = parts_of(True)
    exact = dense(head, hidden, keep, targets)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = pieces(head, hidden, keep, targets), dense(head, hidden, keep, targets)
    assert all(grad.dtype == torch.float32 for grad in ours[2])
    for name, found in (("ours", ours), ("torch", theirs)):
        worst = max(float((a - b).norm() / b.norm()) for a, b in zip(found[2], exact[2], strict=True))
        note(f"bfloat16 autocast, {name}: loss {abs(found[0] / exact[0] - 1):.1e}, gradients {worst:.1e}")
        assert worst < 2e-2
        assert found[0] == pytest.approx(exact[0], rel=1e-2)


def test_two_uses_in_one_step_add_up():
    import torch

    from tunekit.kernels.label_loss import LabelHead, Tail

    head, hidden, keep, targets = parts_of(True)
    label_head, model = LabelHead(head, Tail()), Model(head, hidden)
    for count in (3, 5):
        (label_head.loss(model, ids(), keep[:count], targets[:count]).total / 7).backward()
    ours = [each.grad.clone() for each in (hidden, *head.parameters())]
    expected = [torch.zeros_like(each) for each in ours]
    for count in (3, 5):
        for place, grad in enumerate(dense(head, hidden, keep[:count], targets[:count], upstream=1 / 7)[2]):
            expected[place] += grad
    for a, b in zip(ours, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_evaluation_makes_no_gradients(monkeypatch):
    """They would cost two matrix products and a float32 copy of the head's weight for each batch."""
    import torch

    from tunekit.kernels import label_loss, token_logps

    head, hidden, keep, targets = parts_of(True)
    made = []
    monkeypatch.setattr(token_logps.Pieces, "add", lambda *_: made.append(1))
    with torch.no_grad():
        found = label_loss.LabelHead(head, label_loss.Tail()).loss(Model(head, hidden), ids(), keep, targets)
    assert float(found.total) == pytest.approx(dense(head, hidden, keep, targets)[0], rel=1e-5)
    assert not found.total.requires_grad
    assert not made


def test_the_head_makes_logits_as_ever_when_it_is_not_asked():
    import torch

    from tunekit.kernels.label_loss import LabelHead, Tail

    head, hidden, keep, targets = parts_of(True)
    before = head(hidden)
    label_head = LabelHead(head, Tail())
    assert torch.equal(head(hidden), before)
    found = label_head.loss(Model(head, hidden), ids(), keep, targets)
    assert found.outputs.logits.numel() == 0
    assert torch.equal(head(hidden), before)


def test_a_model_that_fails_leaves_the_head_as_it_was():
    import torch

    from tunekit.kernels.label_loss import LabelHead, Tail

    head, hidden, keep, targets = parts_of(True)
    label_head, before = LabelHead(head, Tail()), head(hidden)

    def broken(**_):
        raise MemoryError

    with pytest.raises(MemoryError):
        label_head.loss(broken, ids(), keep, targets)
    assert torch.equal(head(hidden), before)


def sizes_seen(work):
    """Elements of the largest tensor that is made in a piece of work."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            import torch

            out = func(*args, **(kwargs or {}))
            for each in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(each, torch.Tensor):
                    self.elements = max(self.elements, each.numel())
            return out

    with Largest() as seen:
        work()
    return seen.elements


def test_the_logits_of_a_batch_never_exist(monkeypatch):
    """300 labelled positions at a vocabulary of 2,000, ten at a time: the weight's gradient is the largest tensor."""
    import torch

    from tunekit.kernels import label_loss, token_logps

    vocabulary, labels, width = 2000, 300, 16
    monkeypatch.setattr(token_logps, "PIECE_BYTES", {"cpu": 10 * 4 * vocabulary, "cuda": 0})
    head, hidden = torch.nn.Linear(width, vocabulary, bias=False), torch.randn(1, 400, width, requires_grad=True)
    keep, targets = torch.arange(labels), torch.randint(0, vocabulary, (labels,))
    label_head, given = label_loss.LabelHead(head, label_loss.Tail()), {"input_ids": torch.zeros((1, 400))}

    def ours():
        label_head.loss(Model(head, hidden), given, keep, targets).total.backward()

    def whole():
        torch.nn.functional.cross_entropy(head(hidden)[0, keep], targets).backward()

    assert sizes_seen(ours) == vocabulary * width
    assert sizes_seen(whole) == vocabulary * 400


def adapted(kind="llama", **options):
    """A tiny Llama with LoRA, in full precision, its B matrices not zero."""
    import torch
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(build(kind), LoraConfig(r=2, lora_alpha=4, task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) * 0.1)
    return model


ADAPTED = {
    "layers": ({"target_modules": ["q_proj", "v_proj"]}, True),
    "the head": ({"target_modules": ["q_proj", "lm_head"]}, False),
    "a trained copy of the head": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
    "a trained copy of head and embedding": (
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ADAPTED)
def test_adapters_on_the_layers_and_on_the_head(name, small_pieces):
    import torch

    from tunekit.kernels.label_loss import LabelHead, find_tail

    options, known = ADAPTED[name]
    model = adapted(**options)
    plain, rows = model.get_base_model(), documents()
    head = plain.get_output_embeddings()
    tail = find_tail(plain, head)
    assert (tail is not None) is known
    assert made_flat(model) == ""
    inputs, keep, targets = flat_batch(rows)
    logits = model(**inputs, use_cache=False).logits[0, keep]
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    expected.backward()
    theirs = gradients(model)
    model.zero_grad()
    found = LabelHead(head, tail).loss(model, inputs, keep, targets)
    found.total.backward()
    assert float(found.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert int(found.correct) == int((logits.argmax(-1) == targets).sum())
    assert distance(gradients(model), theirs) < 1e-5
    assert {key for key, value in theirs.items() if value.any()} == {
        key for key, value in gradients(model).items() if value.any()
    }


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_get_both_shares_of_their_gradient(tied, small_pieces):
    import torch

    from tunekit.kernels.label_loss import LabelHead, find_tail

    model = build("llama", tie_word_embeddings=tied)
    head = model.get_output_embeddings()
    assert (head.weight is model.get_input_embeddings().weight) is tied
    assert made_flat(model) == ""
    inputs, keep, targets = flat_batch(documents())
    logits = model(**inputs, use_cache=False).logits[0, keep]
    torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
    theirs = gradients(model)
    model.zero_grad()
    LabelHead(head, find_tail(model, head)).loss(model, inputs, keep, targets).total.backward()
    assert distance(gradients(model), theirs) < 1e-5


TAILS = {
    "llama": ({}, 1.0, None),
    "cohere": ({"logit_scale": 0.0625}, 0.0625, None),
    "cohere2": ({"logit_scale": 3.0}, 3.0, None),
    "granite": ({"logits_scaling": 8.0}, 0.125, None),
    "gemma2": ({"final_logit_softcapping": 2.0}, 1.0, 2.0),
}


@pytest.mark.parametrize("kind", TAILS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_tail_of_a_model_is_what_its_config_says(kind, dtype):
    import torch

    from tunekit.kernels.label_loss import find_tail

    changes, scale, cap = TAILS[kind]
    model = build(kind, **changes).to(getattr(torch, dtype))
    tail = find_tail(model, model.get_output_embeddings())
    assert tail.cap == cap
    assert tail.scale == pytest.approx(scale, rel=1e-5 if dtype == "float32" else 1e-3)
    if scale == 1.0:
        assert tail.scale == 1.0


def test_the_tail_is_measured_the_same_inside_mixed_precision():
    import torch

    from tunekit.kernels.label_loss import Tail, find_tail

    model = build("llama")
    with torch.autocast("cpu", torch.bfloat16):
        assert find_tail(model, model.get_output_embeddings()) == Tail()


def test_a_bend_that_shows_only_in_large_logits_is_not_taken_for_none():
    """Fresh weights make small logits, of which every soft cap is nearly the identity; training makes them large."""
    import torch

    from tunekit.kernels.label_loss import find_tail

    model = build("recurrent_gemma")  # its soft cap has a name of its own
    assert model.config.logits_soft_cap == 30.0
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(1e-2)
        tail = find_tail(model, head)
        head.weight.mul_(1e4)
        seen = []
        handle = head.register_forward_hook(lambda _module, _args, output: seen.append(output))
        logits = model(input_ids=torch.arange(4, 12)[None], use_cache=False).logits
        handle.remove()
    assert float(seen[0].abs().max()) > 60
    assert tail is None or torch.allclose(tail(seen[0]), logits, atol=1e-3)


def test_every_module_keeps_its_mode():
    from tunekit.kernels.label_loss import find_tail

    model = build("llama").train()
    model.model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    find_tail(model, model.get_output_embeddings())
    assert {name: module.training for name, module in model.named_modules()} == before


def test_a_model_that_is_broken_has_no_tail():
    import torch

    from tunekit.kernels.label_loss import find_tail

    model = build("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    assert find_tail(model, model.get_output_embeddings()) is None


def test_a_head_of_zeros_has_no_tail_and_still_a_loss():
    import math

    import torch

    from tunekit.kernels.label_loss import LabelHead, find_tail

    model, rows = build("llama"), documents((9,))
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.zero_()
    assert made_flat(model) == ""
    inputs, keep, targets = flat_batch(rows)
    found = LabelHead(head, find_tail(model, head)).loss(model, inputs, keep, targets)
    assert float(found.total.detach()) == pytest.approx(len(targets) * math.log(97), rel=1e-6)
