"""Divergence of student and teacher, in pieces, against torch's distributions, TRL, and a pencil."""

from __future__ import annotations

import math
import weakref

import pytest

LENGTH, OURS, THEIRS, VOCABULARY = 7, 12, 20, 53  # the teacher is wider
KINDS = ("forward_kl", "reverse_kl", "jsd")
CLOSE = {"float64": 1e-9, "float32": 1e-5}


def side_of(seed, width, dtype="float64", bias=True, tail=(1.0, None), vocabulary=VOCABULARY, large=1.0, length=LENGTH):
    """A side with leaves that want gradients."""
    import torch

    from tunekit.kernels.divergence import Side
    from tunekit.kernels.label_loss import Tail

    generator = torch.Generator().manual_seed(seed)
    shapes = ((length, width), (vocabulary, width), (vocabulary,))
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    made[1] *= large / width**0.5
    hidden, weight, shift = (each.to(getattr(torch, dtype)).requires_grad_() for each in made)
    return Side(hidden, weight, shift if bias else None, Tail(*tail))


def leaves(side):
    return [each for each in (side.hidden, side.weight, side.bias) if each is not None]


def doubled(side):
    """The same numbers in float64."""
    from tunekit.kernels.divergence import Side

    return Side(*(each.detach().double().requires_grad_() for each in leaves(side)), tail=side.tail)


def all_logits(side):
    """Every logit of a side, by torch alone."""
    import torch

    if side.weight is None:
        return side.hidden
    output = torch.nn.functional.linear(side.hidden, side.weight, side.bias)
    output = output.to(torch.promote_types(output.dtype, torch.float32)) * side.tail.scale
    return output if side.tail.cap is None else side.tail.cap * torch.tanh(output / side.tail.cap)


def by_torch(student, teacher, kind, beta=0.5, temperature=1.0):
    """(L,) divergences from all logits, by torch.distributions."""
    import torch
    from torch.distributions import Categorical, kl_divergence

    rows = min(student.vocabulary, teacher.vocabulary)
    q, p = (Categorical(logits=all_logits(side)[:, :rows] / temperature) for side in (student, teacher))
    if kind == "forward_kl":
        return kl_divergence(p, q)
    if kind == "reverse_kl":
        return kl_divergence(q, p)
    m = Categorical(logits=torch.stack([p.logits + math.log(beta), q.logits + math.log(1 - beta)]).logsumexp(0))
    return beta * kl_divergence(p, m) + (1 - beta) * kl_divergence(q, m)


def alike(found, expected, tolerance, least=1e-6):
    """``least``: the norm below which the tolerance becomes no smaller."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= tolerance * max(float(expected.norm()), least)


def agree(student, teacher, kind, tolerance, weights=None, upstream=1.0, **options):
    """Values and gradients are torch's; the teacher gets none."""
    import torch

    from tunekit.kernels.divergence import divergence

    expected = by_torch(student, teacher, kind, **options)
    total = (expected if weights is None else expected * weights).sum()
    theirs = torch.autograd.grad(total * upstream, leaves(student))
    found = divergence(student, teacher, kind, weights=weights, **options)
    assert found.total.shape == () and found.total.requires_grad
    assert not found.each.requires_grad
    # float32 leaves some 3e-7 of log-probabilities of a few units, however near they are on both sides
    least = (1e-6, 1e-6) if expected.dtype == torch.float64 else (1.0, 0.1)
    alike(found.each, expected.detach(), tolerance, least[0])
    alike(found.total.detach(), total.detach(), tolerance, least[0])
    ours = torch.autograd.grad(found.total * upstream, [*leaves(student), *leaves(teacher)], allow_unused=True)
    for a, b in zip(ours, theirs, strict=False):
        alike(a, b, tolerance, least[1])
    assert ours[len(theirs) :] == (None,) * len(leaves(teacher))


@pytest.fixture
def small_pieces(monkeypatch):
    """Two positions at a time in float64, four in float32."""
    from tunekit.kernels import divergence

    monkeypatch.setattr(divergence, "PIECE_BYTES", {"cpu": 2 * 8 * VOCABULARY, "cuda": 0})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tail", [(1.0, None), (0.25, None), (3.0, 2.0)])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_values_and_gradients_are_those_of_all_logits(kind, dtype, bias, tail, temperature, small_pieces):
    student = side_of(1, OURS, dtype, bias, tail)
    teacher = side_of(2, THEIRS, dtype, not bias, (0.5, 4.0))
    agree(student, teacher, kind, CLOSE[dtype], temperature=temperature, beta=0.3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("upstream", [1 / 7, -2.5])
def test_positions_have_weights(kind, upstream, small_pieces):
    import torch

    weights = torch.tensor([0.0, 1.0, 2.5, -1.0, 0.1, 1.0, 3.0], dtype=torch.float64)
    agree(side_of(1, OURS), side_of(2, THEIRS), kind, 1e-9, weights, upstream)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_weights_of_another_precision_change_no_other(dtype, small_pieces):
    """Of 1, 2 and 0.5, which each dtype holds exactly."""
    import torch

    from tunekit.kernels.divergence import divergence

    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 2.0, 0.5, 1.0])
    student, teacher = side_of(1, OURS, "float32"), side_of(2, THEIRS, "float32")
    ours, theirs = (
        divergence(student, teacher, "jsd", weights=each).total for each in (weights.to(getattr(torch, dtype)), weights)
    )
    alike(ours.detach(), theirs.detach(), 1e-6)
    for a, b in zip(*(torch.autograd.grad(each, leaves(student)) for each in (ours, theirs)), strict=True):
        alike(a, b, 1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("ours", "theirs"), [(VOCABULARY, VOCABULARY + 11), (VOCABULARY + 11, VOCABULARY)])
@pytest.mark.parametrize("form", ["heads", "logits"])
def test_rows_that_one_side_has_more_are_not_compared(kind, ours, theirs, form, small_pieces):
    """Nor do they get a gradient, or a share of the probability."""
    import torch

    from tunekit.kernels.divergence import Side, divergence

    student, teacher = side_of(1, OURS, vocabulary=ours), side_of(2, THEIRS, vocabulary=theirs)
    if form == "logits":
        student, teacher = (Side.of_logits(all_logits(side).detach().requires_grad_()) for side in (student, teacher))
    agree(student, teacher, kind, 1e-9)
    total = divergence(student, teacher, kind).total
    grad = torch.autograd.grad(total, student.hidden if form == "logits" else student.weight)[0]
    extra = (grad if form == "logits" else grad.T)[:, VOCABULARY:]
    assert extra.shape[1] == ours - VOCABULARY
    assert not extra.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole", ["student", "teacher", "both"])
@pytest.mark.parametrize("dtype", CLOSE)
def test_logits_that_a_model_made_itself(kind, whole, dtype, small_pieces):
    """A model whose tail is neither known form stands beside one whose head is known, or both are such."""
    from tunekit.kernels.divergence import Side

    sides = {"student": side_of(1, OURS, dtype, tail=(1.0, 3.0)), "teacher": side_of(2, THEIRS, dtype)}
    for name in sides if whole == "both" else (whole,):
        sides[name] = Side.of_logits(all_logits(sides[name]).detach().requires_grad_())
    before = [side.hidden.detach().clone() for side in sides.values()]
    agree(sides["student"], sides["teacher"], kind, CLOSE[dtype], temperature=2.0)
    assert all(side.hidden.equal(kept) for side, kept in zip(sides.values(), before, strict=True))


@pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 4.0])
def test_the_loss_of_trl(beta, temperature, small_pieces):
    """Its beta 0 and 1 are the two KLs; the temperature divides both sides' logits, nothing is multiplied by it."""
    import torch
    from trl.experimental.gkd import GKDTrainer

    from tunekit.kernels.divergence import divergence

    student, teacher = side_of(1, OURS), side_of(2, THEIRS)
    theirs = GKDTrainer.generalized_jsd_loss(
        all_logits(student)[None], all_logits(teacher).detach()[None], beta=beta, temperature=temperature,
        reduction="sum",
    )  # fmt: skip
    kind = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(beta, "jsd")
    ours = divergence(student, teacher, kind, beta=beta, temperature=temperature).total
    alike(ours.detach(), theirs.detach(), 1e-9)
    for a, b in zip(*(torch.autograd.grad(each, leaves(student)) for each in (ours, theirs)), strict=True):
        alike(a, b, 1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_chunked_loss_of_trl(beta, small_pieces):
    """From hidden states and heads with their tails, as its trainer of distillation does it."""
    import torch
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    from tunekit.kernels.divergence import divergence

    student, teacher = side_of(1, OURS, "float32", tail=(3.0, 2.0)), side_of(2, THEIRS, "float32", tail=(0.5, None))
    theirs, _, _ = _chunked_divergence_loss(
        student.hidden[None], teacher.hidden[None], student.weight, teacher.weight, torch.ones(1, LENGTH), beta,
        num_items_in_batch=1, student_lm_head_bias=student.bias, teacher_lm_head_bias=teacher.bias,
        student_logit_scale=3.0, teacher_logit_scale=0.5, student_final_logit_softcapping=2.0, temperature=1.5,
    )  # fmt: skip
    kind = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(beta, "jsd")
    ours = divergence(student, teacher, kind, beta=beta, temperature=1.5).total
    alike(ours.detach(), theirs.detach(), 1e-5)
    for a, b in zip(*(torch.autograd.grad(each, leaves(student)) for each in (ours, theirs)), strict=True):
        alike(a, b, 1e-5)


def two_tokens(kind, temperature=1.0):
    """(divergence, gradient by the first logit): the teacher says 3/4 and 1/4, the student 1/2 and 1/2."""
    import torch

    from tunekit.kernels.divergence import Side, divergence

    student = torch.zeros((1, 2), dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    total = divergence(Side.of_logits(student), Side.of_logits(teacher), kind, temperature=temperature).total
    total.backward()
    assert float(student.grad.sum()) == pytest.approx(0, abs=1e-12)
    return float(total.detach()), float(student.grad[0, 0])


@pytest.mark.parametrize(
    ("kind", "value", "slope"),
    [
        # 3/4 ln 3/2 + 1/4 ln 1/2; the slope is q - p
        ("forward_kl", 0.130812036, -0.25),
        # 1/2 ln 2/3 + 1/2 ln 2; the slope is q (ln 2/3 - value)
        ("reverse_kl", 0.143841036, -0.274653072),
        # m = 5/8, 3/8: 1/2 (3/4 ln 6/5 + 1/4 ln 2/3) + 1/2 (1/2 ln 4/5 + 1/2 ln 4/3); 1/4 (ln 4/5 - 0.032269261)
        ("jsd", 0.033822076, -0.063853203),
    ],
)
def test_two_tokens_by_hand(kind, value, slope):
    assert two_tokens(kind) == pytest.approx((value, slope), abs=1e-8)


def test_a_temperature_by_hand():
    """At 2 the teacher says sqrt(3) / (1 + sqrt(3)) = 0.633975; the slope is (q - p) / 2, not twice q - p."""
    p = 0.6339745962
    value = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert two_tokens("forward_kl", 2.0) == pytest.approx((value, (0.5 - p) / 2), abs=1e-9)


@pytest.mark.parametrize(("kind", "beta"), [("forward_kl", 1e-6), ("reverse_kl", 1 - 1e-6)])
def test_the_ends_of_beta_are_the_two_kls(kind, beta, small_pieces):
    """Divided by what becomes nothing there."""
    import torch

    from tunekit.kernels.divergence import divergence

    student, teacher = side_of(1, OURS), side_of(2, THEIRS)
    total = divergence(student, teacher, "jsd", beta=beta).total / min(beta, 1 - beta)
    expected = divergence(student, teacher, kind).total
    alike(total.detach(), expected.detach(), 1e-4)
    for a, b in zip(*(torch.autograd.grad(each, leaves(student)) for each in (total, expected)), strict=True):
        alike(a, b, 1e-4)


def test_half_way_both_sides_count_alike():
    from tunekit.kernels.divergence import divergence

    sides = side_of(1, OURS), side_of(2, THEIRS)
    alike(divergence(*sides, "jsd").each, divergence(*sides[::-1], "jsd").each, 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_side_is_not_far_from_itself(kind):
    import torch

    from tunekit.kernels.divergence import divergence

    side = side_of(1, OURS)
    found = divergence(side, side, kind)
    assert float(found.each.abs().max()) < 1e-14
    assert all(float(grad.abs().max()) < 1e-12 for grad in torch.autograd.grad(found.total, leaves(side)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [1, 3, 7, 100])
def test_the_size_of_the_pieces_changes_nothing(kind, piece, monkeypatch):
    from tunekit.kernels import divergence

    monkeypatch.setattr(divergence, "PIECE_BYTES", {"cpu": piece * 8 * VOCABULARY, "cuda": 0})
    agree(side_of(1, OURS), side_of(2, THEIRS), kind, 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_no_position(kind):
    import torch

    from tunekit.kernels.divergence import divergence

    student, teacher = side_of(1, OURS, length=0), side_of(2, THEIRS, length=0)
    found = divergence(student, teacher, kind)
    assert float(found.total.detach()) == 0 and found.each.shape == (0,)
    assert not any(grad.any() for grad in torch.autograd.grad(found.total, leaves(student)))


@pytest.mark.parametrize("kind", KINDS)
def test_large_logits_do_not_overflow(kind, small_pieces):
    """Of hundreds: float32 cannot hold the other side's probability of a likely token; float64 can."""
    import torch

    from tunekit.kernels.divergence import divergence

    student, teacher = side_of(1, OURS, "float32", large=60.0), side_of(2, THEIRS, "float32", large=60.0)
    assert not all_logits(student).softmax(-1).all()
    exact = tuple(doubled(side) for side in (student, teacher))
    assert all_logits(exact[0]).softmax(-1).all()
    found, expected = divergence(student, teacher, kind), by_torch(*exact, kind)
    assert found.each.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    truth = torch.autograd.grad(expected.sum(), leaves(exact[0]))
    for a, b in zip(torch.autograd.grad(found.total, leaves(student)), truth, strict=True):
        alike(a, b.float(), 1e-4, 0.1)


def ruled_out(ours, theirs):
    """(student, teacher) as logits of five tokens, some of them of minus infinity."""
    import torch

    from tunekit.kernels.divergence import Side

    generator = torch.Generator().manual_seed(0)
    made = [torch.randn((1, 5), generator=generator, dtype=torch.float64) for _ in range(2)]
    for logits, tokens in zip(made, (ours, theirs), strict=True):
        logits[:, list(tokens)] = -torch.inf
    return Side.of_logits(made[0].requires_grad_()), Side.of_logits(made[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_both_rule_out_is_as_if_it_were_not_there(kind):
    import torch

    from tunekit.kernels.divergence import Side, divergence

    student, teacher = ruled_out((4,), (4,))
    found = divergence(student, teacher, kind)
    less = Side.of_logits(student.hidden[:, :4].detach().requires_grad_()), Side.of_logits(teacher.hidden[:, :4])
    expected = by_torch(*less, kind)
    alike(found.each, expected.detach(), 1e-9)
    grad = torch.autograd.grad(found.total, student.hidden)[0]
    alike(grad[:, :4], torch.autograd.grad(expected.sum(), less[0].hidden)[0], 1e-9)
    assert float(grad[0, 4]) == 0


@pytest.mark.parametrize(
    ("kind", "ours", "theirs", "finite"),
    [
        ("forward_kl", (), (4,), True),
        ("forward_kl", (4,), (), False),
        ("reverse_kl", (), (4,), False),
        ("reverse_kl", (4,), (), True),
        ("jsd", (), (4,), True),
        ("jsd", (4,), (), True),
        ("jsd", (3,), (4,), True),
    ],
)
def test_a_token_that_one_side_rules_out(kind, ours, theirs, finite):
    import torch

    from tunekit.kernels.divergence import divergence

    student, teacher = ruled_out(ours, theirs)
    found = divergence(student, teacher, kind)
    assert bool(found.total.isfinite()) is finite
    if not finite:
        assert float(found.total.detach()) == math.inf
        return
    assert bool(torch.autograd.grad(found.total, student.hidden)[0].isfinite().all())
    q, p = (side.hidden.detach().softmax(-1)[0].tolist() for side in (student, teacher))
    beta = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}[kind]
    if beta in (0.0, 1.0):
        a, b = (p, q) if beta == 0.0 else (q, p)
        value = sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x)
    else:
        m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
        value = sum(x * math.log(x / y) / 2 for a in (p, q) for x, y in zip(a, m, strict=True) if x)
    assert float(found.total.detach()) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_side_is_not_hidden(kind):
    import torch

    from tunekit.kernels.divergence import Side, divergence

    student, teacher = side_of(1, OURS), side_of(2, THEIRS)
    with torch.no_grad():
        student.hidden[2, 0] = torch.nan
    for sides in ((student, teacher), (Side.of_logits(all_logits(teacher)), student)):
        assert divergence(*sides, kind).each.isnan().nonzero().tolist() == [[2]]


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_autocast(kind, small_pieces, note):
    """Not further from the values in double precision than torch's own path."""
    import torch

    from tunekit.kernels.divergence import divergence

    student, teacher = side_of(1, OURS, "float32"), side_of(2, THEIRS, "float32")
    double = doubled(student)
    exact = by_torch(double, doubled(teacher), kind).sum()
    truth = torch.autograd.grad(exact, leaves(double))
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = divergence(student, teacher, kind).total, by_torch(student, teacher, kind).sum()
    assert ours.dtype == torch.float32
    for name, total in (("ours", ours), ("torch", theirs)):
        grads = torch.autograd.grad(total, leaves(student))
        assert all(grad.dtype == torch.float32 for grad in grads)
        worst = max(float((a - b).norm() / b.norm()) for a, b in zip(grads, truth, strict=True))
        far = abs(float(total.detach() / exact.detach()) - 1)
        note(f"bfloat16 autocast, {kind}, {name}: value {far:.1e}, gradients {worst:.1e}")
        assert far < 2e-2
        assert worst < 2e-2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_half_precision_beside_a_teacher_of_another(dtype, small_pieces, note):
    import torch

    from tunekit.kernels.divergence import divergence

    student, teacher = side_of(1, OURS, dtype), side_of(2, THEIRS, "float32")
    found = divergence(student, teacher, "jsd")
    grads = torch.autograd.grad(found.total, leaves(student))
    exact = doubled(student)
    expected = by_torch(exact, doubled(teacher), "jsd").sum()
    truth = torch.autograd.grad(expected, leaves(exact))
    assert found.each.dtype == torch.float32
    assert all(grad.dtype == getattr(torch, dtype) for grad in grads)
    worst = max(float((a - b).norm() / b.norm()) for a, b in zip(grads, truth, strict=True))
    note(f"{dtype} weights: gradients {worst:.1e}")
    assert worst < {"bfloat16": 1e-2, "float16": 2e-3}[dtype]


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_head_gets_no_gradient(kind, small_pieces):
    """As in LoRA; only the hidden states' is made."""
    import torch

    from tunekit.kernels.divergence import divergence

    student, teacher = side_of(1, OURS), side_of(2, THEIRS)
    expected = torch.autograd.grad(divergence(student, teacher, kind).total, student.hidden)[0]
    for each in leaves(student)[1:]:
        each.requires_grad_(False)
    total = divergence(student, teacher, kind).total
    assert [grad is not None for grad in total.grad_fn.grads] == [True, False, False]
    alike(torch.autograd.grad(total, student.hidden)[0], expected, 1e-12)


@pytest.mark.parametrize("frozen", [False, True])
def test_no_gradients_are_made_that_nobody_wants(frozen, monkeypatch):
    import torch

    from tunekit.kernels import divergence

    made = []
    monkeypatch.setattr(divergence, "_add", lambda *_: made.append(1))
    student = side_of(1, OURS)
    for each in leaves(student):
        each.requires_grad_(not frozen)
    with torch.set_grad_enabled(frozen):
        found = divergence.divergence(student, side_of(2, THEIRS), "jsd")
    assert not found.total.requires_grad and not made
    alike(found.each, by_torch(side_of(1, OURS), side_of(2, THEIRS), "jsd").detach(), 1e-9)


def test_a_teacher_that_was_run_for_inference_only():
    import torch

    from tunekit.kernels.divergence import Side, divergence

    student, teacher = side_of(1, OURS), side_of(2, THEIRS)
    with torch.inference_mode():
        run = Side(teacher.hidden * 1, teacher.weight, teacher.bias)
        logits = Side.of_logits(all_logits(teacher))
    expected = torch.autograd.grad(divergence(student, teacher, "jsd").total, student.hidden)[0]
    for side in (run, logits):
        alike(torch.autograd.grad(divergence(student, side, "jsd").total, student.hidden)[0], expected, 1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "kl"},
        {"kind": "jsd", "beta": 0.0},
        {"kind": "jsd", "beta": 1.0},
        {"kind": "jsd", "temperature": 0.0},
        {"kind": "jsd", "length": LENGTH + 1},
        {"kind": "jsd", "weights": LENGTH + 1},
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    import torch

    from tunekit.kernels.divergence import divergence

    teacher = side_of(2, THEIRS, length=wrong.pop("length", LENGTH))
    if "weights" in wrong:
        wrong["weights"] = torch.ones(wrong["weights"])
    with pytest.raises(AssertionError):
        divergence(side_of(1, OURS), teacher, **wrong)


def memory_of(work):
    """(bytes of the tensors made in a piece of work that live at once, elements of the largest of them)."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.largest, self.live, self.peak, self.known = 0, 0, 0, set()

        def freed(self, key, size):
            self.known.discard(key)
            self.live -= size

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for each in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(each, torch.Tensor):
                    storage = each.untyped_storage()
                    key, size = storage._cdata, storage.nbytes()
                    self.largest = max(self.largest, each.numel())
                    if key not in self.known:
                        self.known.add(key)
                        self.live += size
                        weakref.finalize(storage, self.freed, key, size)
                    self.peak = max(self.peak, self.live)
            return out

    with Watch() as seen:
        work()
    return seen.peak, seen.largest


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_of_either_side_never_exist(kind, monkeypatch, note):
    """400 positions at 2,000 tokens, ten at a time: one side's logits would be 800,000 numbers."""
    import torch

    from tunekit.kernels import divergence

    length, vocabulary = 400, 2000
    monkeypatch.setattr(divergence, "PIECE_BYTES", {"cpu": 10 * 4 * vocabulary, "cuda": 0})
    sides = [side_of(seed, 16, "float32", vocabulary=vocabulary, length=length) for seed in (1, 2)]
    found = []

    def ours():
        found.append(divergence.divergence(*sides, kind).total)

    def whole():
        by_torch(sides[0], divergence.Side(*(each.detach() for each in leaves(sides[1]))), kind).sum().backward()

    (peak, largest), (theirs, _) = memory_of(ours), memory_of(whole)
    note(f"{kind}: {peak / 1e6:.2f} MB live at once, {theirs / 1e6:.1f} MB from all logits")
    kept = sum(grad.numel() for grad in found[0].grad_fn.grads)
    assert kept == sum(each.numel() for each in leaves(sides[0]))
    assert found[0].grad_fn.saved_tensors == ()  # nothing else waits for the backward pass
    assert largest == vocabulary * 16  # the gradient of the head
    given = sum(each.nbytes for side in sides for each in leaves(side))  # seen by their detached views
    assert peak < given + 4 * kept + 6 * (10 * 4 * vocabulary)
    assert 2 * (4 * length * vocabulary) < theirs  # the measure shows it where both sides' logits are there
    _, largest = memory_of(lambda: torch.autograd.grad(found[0], leaves(sides[0])))
    assert largest == vocabulary * 16
