"""Log-probabilities in pieces, against torch's log_softmax on all logits."""

from __future__ import annotations

import pytest
from branches_for_tests import alone_logps, groups, weights_of
from kernels_for_tests import build, distance, gradients
from test_branches import SHAPES, logps, ready, reference
from test_label_loss import HIDDEN, VOCABULARY, Model, adapted, ids, parts_of, sizes_seen

KEEP = [0, 2, 3, 2, 12, 2]  # one position three times
NAMES = ("logps", "entropy", "correct", "hidden", "outputs")


@pytest.fixture
def small_pieces(monkeypatch):
    """Two tokens at a time."""
    from tunekit.kernels import token_logps

    monkeypatch.setattr(token_logps, "PIECE_BYTES", {"cpu": 2 * 4 * VOCABULARY, "cuda": 2 * 4 * VOCABULARY})


def parts(bias=True, **options):
    """(head, hidden states, keep, targets, weight of each log-probability); the fourth token is the likeliest."""
    import torch

    head, hidden, _, targets = parts_of(bias, **options)
    targets = torch.cat([targets, (targets[:1] + 1) % VOCABULARY])
    targets[3] = head(hidden).reshape(-1, VOCABULARY)[2].argmax()
    return head, hidden, torch.tensor(KEEP), targets, weights_of(targets)


def dense(head, hidden, keep, targets, weights, bend=None, temperature=1.0):
    """(log-probabilities, entropy, right or not, gradients), from all logits in the dtype of the head."""
    import torch

    logits = head(hidden).reshape(-1, VOCABULARY)[keep]
    logits = (logits if bend is None else bend(logits)) / temperature
    every = logits.log_softmax(-1)
    found = every.gather(-1, targets[:, None])[:, 0]
    leaves = [hidden, *(each for each in head.parameters() if each.requires_grad)]
    grads = torch.autograd.grad((found * weights).sum(), leaves)
    entropy = -torch.special.xlogy(every.exp(), every.exp()).sum(-1).detach()
    return found.detach(), entropy, logits.argmax(-1) == targets, grads


def pieces(head, hidden, keep, targets, weights, tail=None, temperature=1.0, bend=None):
    """The same by `LabelHead`."""
    import torch

    from tunekit.kernels.label_loss import LabelHead
    from tunekit.kernels.token_logps import Tail

    label_head = LabelHead(head, Tail() if tail is None else tail or None)
    model = Model(head, hidden, bend)
    found = label_head.logps(model, ids(), keep, targets, temperature=temperature, entropy=True)
    leaves = [hidden, *(each for each in head.parameters() if each.requires_grad)]
    grads = torch.autograd.grad((found.logps * weights).sum(), leaves, allow_unused=True)
    assert found.logps.dtype == found.entropy.dtype == torch.float32
    assert not found.entropy.requires_grad and found.correct.dtype == torch.bool
    assert torch.equal(found.hidden, hidden.reshape(-1, HIDDEN)[keep])
    return found.logps.detach(), found.entropy, found.correct, grads


def same(found, expected, tolerance=1e-5):
    import torch

    assert torch.allclose(found[0].double(), expected[0].double(), rtol=tolerance, atol=tolerance)
    assert torch.allclose(found[1].double(), expected[1].double(), rtol=tolerance, atol=tolerance)
    assert torch.equal(found[2], expected[2])
    for ours, theirs in zip(found[3], expected[3], strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert float((ours - theirs).norm()) <= tolerance * float(theirs.norm())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.0625])
@pytest.mark.parametrize("cap", [None, 8.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-6)])
def test_values_and_gradients_are_those_of_all_logits(bias, scale, cap, temperature, dtype, tolerance, small_pieces):
    import torch

    from tunekit.kernels.token_logps import Tail

    def bend(logits):
        return logits * scale if cap is None else cap * torch.tanh(logits * scale / cap)

    given = parts(bias, dtype=dtype)
    expected = dense(*given, bend, temperature)
    same(pieces(*given, Tail(scale, cap), temperature, bend), expected, tolerance)
    assert 1 <= int(expected[2].sum()) < 6


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_head_of_another_form_gives_the_same_from_the_models_own_logits(temperature, small_pieces):
    """Its logits at the kept positions exist then; nothing else does."""
    given = parts()
    same(pieces(*given, tail=False, temperature=temperature), dense(*given, temperature=temperature))


@pytest.mark.parametrize("piece", [1, 2, 4, 6, 100])
def test_the_size_of_the_pieces_changes_nothing(piece, monkeypatch):
    from tunekit.kernels import token_logps

    monkeypatch.setattr(token_logps, "PIECE_BYTES", {"cpu": piece * 4 * VOCABULARY, "cuda": 0})
    same(pieces(*parts()), dense(*parts()))


@pytest.mark.parametrize("count", [0, 1])
def test_no_token_and_one_token(count):
    head, hidden, keep, targets, weights = parts()
    given = head, hidden, keep[:count], targets[:count], weights[:count]
    found = pieces(*given)
    assert found[0].shape == found[1].shape == found[2].shape == (count,)
    same(found, dense(*given))


def test_large_logits_do_not_overflow():
    """Certain of one token: an entropy of nearly nothing, and log-probabilities of minus thousands."""
    given = parts(large=200.0)
    found, expected = pieces(*given), dense(*given)
    assert float(expected[0].min()) < -1000
    same(found, expected)


def test_a_table_of_zeros_has_the_entropy_of_its_vocabulary():
    import math

    import torch

    head, hidden, keep, targets, weights = parts(False)
    with torch.no_grad():
        head.weight.zero_()
    found = pieces(head, hidden, keep, targets, weights)
    assert found[0].tolist() == pytest.approx([-math.log(VOCABULARY)] * 6)
    assert found[1].tolist() == pytest.approx([math.log(VOCABULARY)] * 6)


def test_a_frozen_head_gets_no_gradient_and_a_frozen_model_gives_one_to_the_head(small_pieces):
    import torch

    given = parts(frozen=True)
    found = pieces(*given)
    assert len(found[3]) == 1
    same(found, dense(*given))
    head, hidden, *rest = parts()
    with pytest.raises(RuntimeError, match="not require grad"):
        pieces(head, hidden.detach(), *rest)  # asks for that of the hidden states too
    grads = torch.autograd.grad((logps_of(head, hidden.detach(), *rest[:2]) * rest[2]).sum(), list(head.parameters()))
    for ours, theirs in zip(grads, dense(head, hidden, *rest)[3][1:], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def logps_of(head, hidden, keep, targets, **options):
    from tunekit.kernels.label_loss import LabelHead
    from tunekit.kernels.token_logps import Tail

    return LabelHead(head, Tail()).logps(Model(head, hidden), ids(), keep, targets, **options).logps


LOSES = {"bfloat16": (0.1, 2e-2), "float16": (0.02, 4e-3)}  # values, gradients as a share of their norm


def check_half(found, exact, dtype, upstream, note):
    values = float((found[0] - exact[0]).abs().max())
    worst = max(float((a.double() / upstream - b).norm() / b.norm()) for a, b in zip(found[3], exact[3], strict=True))
    note(f"{dtype}, times {upstream}: values {values:.1e}, gradients {worst:.1e}")
    assert values < LOSES[dtype][0]
    assert worst < LOSES[dtype][1]


@pytest.mark.parametrize("dtype", LOSES)
def test_half_precision_weights(dtype, small_pieces, note):
    head, hidden, keep, targets, weights = parts(dtype=dtype, large=0.3)
    double = parts(dtype="float64", large=0.3)[0]
    double.load_state_dict({name: value.double() for name, value in head.state_dict().items()})
    exact = dense(double, hidden.detach().double().requires_grad_(), keep, targets, weights)
    check_half(pieces(head, hidden, keep, targets, weights), exact, dtype, 1.0, note)


@pytest.mark.parametrize("dtype", LOSES)
@pytest.mark.parametrize("upstream", [1.0, 1e-9])
def test_autocast_computes_in_half_precision_and_gives_gradients_in_float32(dtype, upstream, small_pieces, note):
    """A mean over very many tokens gives each a weight that float16 does not know."""
    import torch

    head, hidden, keep, targets, weights = parts(large=0.3)
    exact = dense(head, hidden, keep, targets, weights)
    with torch.autocast("cpu", getattr(torch, dtype)):
        found = pieces(head, hidden, keep, targets, weights * upstream)
    assert all(grad.dtype == torch.float32 for grad in found[3])
    check_half(found, exact, dtype, upstream, note)


@pytest.mark.parametrize("count", [5, 40])
def test_shapes_that_bfloat16_is_filled_up_to_change_nothing(count, small_pieces):
    """On the CPU the states are filled up with zeros; more of them than a piece holds."""
    import torch

    from tunekit.kernels.label_loss import LabelHead, Tail

    generator = torch.Generator().manual_seed(2)
    head = parts()[0]
    hidden = torch.randn(1, 64, HIDDEN, generator=generator).bfloat16().float().requires_grad_()
    with torch.no_grad():
        head.weight.copy_(head.weight.bfloat16())
    keep, targets = torch.arange(count), torch.randint(0, VOCABULARY, (count,), generator=generator)
    model = Model(head, hidden)
    given = {"input_ids": torch.zeros((1, 64), dtype=torch.long)}
    with torch.autocast("cpu", torch.bfloat16):
        found = LabelHead(head, Tail()).logps(model, given, keep, targets)
    found.logps.sum().backward()
    expected = dense(head, hidden, keep, targets, torch.ones(count))
    assert float((found.logps.detach() - expected[0]).abs().mean()) < 0.03
    assert float((hidden.grad - expected[3][0]).norm() / expected[3][0].norm()) < 2e-2


def test_a_value_heads_gradient_reaches_the_hidden_states_beside_the_log_probabilities():
    import torch

    from tunekit.kernels.label_loss import LabelHead
    from tunekit.kernels.token_logps import Tail

    head, hidden, keep, targets, weights = parts()
    found = LabelHead(head, Tail()).logps(Model(head, hidden), ids(), keep, targets)
    assert found.entropy is None
    ((found.logps * weights).sum() + found.hidden.square().sum()).backward()
    own = dense(head, hidden, keep, targets, weights)[3][0]
    squares = torch.autograd.grad(hidden.reshape(-1, HIDDEN)[keep].square().sum(), hidden)[0]
    assert torch.allclose(hidden.grad, own + squares, atol=1e-5)


def test_a_loss_and_log_probabilities_take_turns_at_one_head():
    """Neither leaves anything behind: without being asked, the head makes logits."""
    import torch

    from tunekit.kernels.label_loss import LabelHead
    from tunekit.kernels.token_logps import Tail

    head, hidden, keep, targets, _ = parts()
    before, model = head(hidden), Model(head, hidden)
    label_head = LabelHead(head, Tail())
    logps = label_head.logps(model, ids(), keep, targets).logps
    loss = label_head.loss(model, ids(), keep, targets).total
    assert float(loss.detach()) == pytest.approx(-float(logps.detach().sum()), rel=1e-6)
    assert torch.equal(head(hidden), before)
    with pytest.raises(MemoryError):
        label_head.logps(broken, ids(), keep, targets)
    assert torch.equal(head(hidden), before)


def broken(**_):
    raise MemoryError


def test_weights_that_change_before_the_backward_pass_are_an_error():
    """The logits are made anew from them: other weights would give other gradients without a word."""
    import torch

    head, hidden, keep, targets, _ = parts()
    found = logps_of(head, hidden, keep, targets).sum()
    with torch.no_grad():
        head.weight.add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        found.backward()


def test_neither_pass_has_the_logits_of_a_batch_and_nothing_of_their_size_is_kept(monkeypatch):
    """300 tokens at a vocabulary of 2,000, ten at a time; first the fault: torch's log_softmax keeps all of them."""
    import torch

    from tunekit.kernels import token_logps
    from tunekit.kernels.label_loss import LabelHead

    vocabulary, count, width = 2000, 300, 16
    monkeypatch.setattr(token_logps, "PIECE_BYTES", {"cpu": 10 * 4 * vocabulary, "cuda": 0})
    head, hidden = torch.nn.Linear(width, vocabulary, bias=False), torch.randn(1, 400, width, requires_grad=True)
    keep, targets = torch.arange(count), torch.randint(0, vocabulary, (count,))
    label_head = LabelHead(head, token_logps.Tail())
    given = {"input_ids": torch.zeros((1, 400))}

    def ours():
        return label_head.logps(Model(head, hidden), given, keep, targets, entropy=True).logps.sum()

    def theirs():
        return head(hidden)[0, keep].log_softmax(-1).gather(-1, targets[:, None]).sum()

    kept = {}
    for name, work in (("ours", ours), ("theirs", theirs)):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda each, into=sizes: into.append(each.numel()), id):
            work()
        kept[name] = max(sizes)
    assert kept == {"ours": vocabulary * width, "theirs": vocabulary * count}  # ours: the weight itself
    assert sizes_seen(lambda: ours().backward()) == vocabulary * width
    assert sizes_seen(lambda: theirs().backward()) == vocabulary * 400


@pytest.mark.parametrize("kind", ["llama", "granite", "gemma2", "cohere"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_whole_models_with_tails(kind, temperature):
    import torch

    given = groups(SHAPES)
    model = reference(kind)
    expected = torch.cat(alone_logps(model, given, temperature))
    (expected * weights_of(expected)).sum().backward()
    theirs = gradients(model)
    model = ready(kind)
    found, _ = logps(model, given, "shared", temperature=temperature)
    (found.logps * weights_of(expected)).sum().backward()
    assert torch.allclose(found.logps, expected, atol=3e-5)
    assert distance(gradients(model), theirs) < 1e-5


@pytest.mark.parametrize("target", ["q_proj", "lm_head"])
def test_adapters_on_the_layers_and_on_the_head(target):
    import torch
    from branches_for_tests import laid_out
    from kernels_for_tests import made_flat

    from tunekit.kernels.label_loss import LabelHead, find_tail

    model, given = adapted(target_modules=[target, "v_proj"]), groups(SHAPES)
    plain = model.get_base_model()
    head = plain.get_output_embeddings()
    expected = torch.cat(alone_logps(model, given))
    (expected * weights_of(expected)).sum().backward()
    theirs = gradients(model)
    assert made_flat(model) == ""
    tail = find_tail(plain, head)
    assert (tail is None) is (target == "lm_head")
    model.zero_grad()
    inputs, keep, targets, _ = laid_out(given, "shared")
    found = LabelHead(head, tail).logps(model, inputs, keep, targets, entropy=True)
    (found.logps * weights_of(expected)).sum().backward()
    assert torch.allclose(found.logps, expected, atol=2e-5)
    assert distance(gradients(model), theirs) < 1e-5
    with torch.no_grad(), model.disable_adapter():
        before = LabelHead(head, tail).logps(model, inputs, keep, targets)
    assert torch.allclose(before.logps, torch.cat(alone_logps(build("llama"), given)), atol=2e-5)
