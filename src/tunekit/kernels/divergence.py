"""How far a student's next-token distributions are from a teacher's, in pieces: their logits never exist as a whole.

Gradients are computed beside the divergence, while a piece's logits are there: making both sides' logits again in the
backward pass would cost half as many matrix products more, and would hold on to both sides' hidden states until then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import nn

from tunekit.kernels.label_loss import Tail
from tunekit.kernels.segments import rounded

Kind = Literal["forward_kl", "reverse_kl", "jsd"]
"""KL(teacher || student), KL(student || teacher), or what lies between them (generalized Jensen-Shannon)."""
PIECE_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
"""Bytes of one side's float32 logits of one piece; some five such tensors live at once."""


@dataclass(frozen=True, eq=False)
class Side:
    """One model at L positions: its hidden states and the head that makes logits of them.

    Args:
        hidden: (L, E) what the head is given; E may differ between the sides. Without a ``weight``: (L, V) logits.
        weight: (V, E) of the head.
        bias: (V,) of the head.
        tail: what the model does to its head's output.
    """

    hidden: torch.Tensor
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    tail: Tail = field(default_factory=Tail)

    @classmethod
    def of_logits(cls, logits: torch.Tensor) -> Side:
        """A side whose (L, V) logits the model made itself: its tail is neither known form, or the head is adapted."""
        return cls(logits)

    @property
    def vocabulary(self) -> int:
        """V: tokens that have a logit."""
        return self.hidden.shape[-1] if self.weight is None else self.weight.shape[0]


@dataclass(frozen=True, eq=False)
class Divergence:
    """In nats: ``total`` summed over the positions by weight, with gradient; ``each`` (L,) unweighted, without one."""

    total: torch.Tensor
    each: torch.Tensor


def divergence(
    student: Side,
    teacher: Side,
    kind: Kind,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    weights: torch.Tensor | None = None,
) -> Divergence:
    """The divergence of the student from the teacher at L positions; only the student's tensors get gradients.

    With p of the teacher, q of the student, and m = beta p + (1 - beta) q, ``jsd`` is beta KL(p || m) + (1 - beta)
    KL(q || m) (GKD, arXiv 2306.13649, equation 1): divided by beta it tends to KL(p || q) as beta tends to 0, divided
    by 1 - beta to KL(q || p) as beta tends to 1. The product with the head is in the arithmetic of the forward pass
    around it, everything after it in float32 (float64 where a side is float64). A token that one side rules out (a
    logit of minus infinity) adds nothing where the other does so too, else what the formula says: infinity for a KL.

    Args:
        student: (L, E) and its head.
        teacher: at the same positions, on the same device. Where the vocabularies differ in size (rows of the
            embedding that no token has), both distributions are those over the first min(V) tokens.
        kind: which divergence.
        beta: of ``jsd``, between 0 and 1; without meaning for the others.
        temperature: divides both sides' logits, after their tails. The result is not multiplied by its square, which
            Hinton et al. (arXiv 1503.02531) do to keep the size of the gradients: GKD and TRL do not either.
        weights: (L,) of the positions in ``total``, without gradient; 1 each by default.
    """
    count = len(student.hidden)
    assert len(teacher.hidden) == count, f"{len(teacher.hidden)} positions of the teacher, {count} of the student"
    assert weights is None or weights.shape == (count,), f"weights {tuple(weights.shape)} for {count} positions"
    assert kind in get_args(Kind), kind
    assert kind != "jsd" or 0 < beta < 1, f"beta {beta} is not between 0 and 1"
    assert temperature > 0, f"temperature {temperature}"
    leaves = student.hidden, student.weight, student.bias
    learns = torch.is_grad_enabled() and any(leaf is not None and leaf.requires_grad for leaf in leaves)
    measure = _Measure(kind, beta, temperature, weights, _dtype(student), _dtype(teacher), learns)
    with torch.autocast(student.hidden.device.type, enabled=False):
        total, each = _Pieces.apply(*leaves, student.tail, teacher, measure)  # type: ignore[no-untyped-call]
    return Divergence(total, each)


def _dtype(side: Side) -> torch.dtype:
    """In which a side's logits are computed."""
    device = side.hidden.device.type
    if side.weight is None:
        return side.hidden.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else side.weight.dtype


@dataclass(frozen=True, eq=False)
class _Measure:
    """What is computed, and in which arithmetic; ``learns``: whether gradients are wanted."""

    kind: Kind
    beta: float
    temperature: float
    weights: torch.Tensor | None
    student: torch.dtype
    teacher: torch.dtype
    learns: bool

    @property
    def wide(self) -> torch.dtype:
        """Of all that comes after the heads."""
        return torch.promote_types(torch.promote_types(self.student, self.teacher), torch.float32)

    def __call__(self, ours: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The divergence (n,) of log-probabilities (n, V), and its gradient (n, V) by the student's logits.

        Both are written to: a piece should need few tensors of its size.
        """
        if self.kind == "forward_kl":
            p = theirs.exp()
            each = _mean(theirs.sub_(ours), p)
            return each[:, 0], ours.exp_().sub_(p) if self.learns else None
        share, middle, rest = 1.0, theirs, None
        if self.kind == "jsd":
            share = 1 - self.beta
            middle = theirs + math.log(self.beta)
            torch.logaddexp(middle, ours + math.log(share), out=middle)
            p = theirs.exp()
            rest = _mean(theirs.sub_(middle), p).mul_(self.beta)
            del p
        gap = middle.neg_().add_(ours)
        q = ours.exp_()
        own = _mean(gap, q)
        each = own if rest is None else rest + share * own
        return each[:, 0], gap.sub_(own).mul_(q).mul_(share) if self.learns else None


def _mean(gap: torch.Tensor, chances: torch.Tensor) -> torch.Tensor:
    """Expectation (n, 1) of a gap (n, V) of log-probabilities, which is set to 0 where there is no chance of it.

    There it may be infinite or not a number, and still adds nothing.
    """
    gap.masked_fill_(chances == 0, 0.0)
    return (gap * chances).sum(-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class _Head:
    """A side made ready: states (L or more, E) and table (V, E) in the dtype of its arithmetic."""

    states: torch.Tensor
    table: torch.Tensor | None
    bias: torch.Tensor | None
    tail: Tail
    vocabulary: int

    @classmethod
    def of(cls, side: Side, dtype: torch.dtype, vocabulary: int) -> _Head:
        """Over the first ``vocabulary`` tokens."""
        states, count = side.hidden.detach().to(dtype), len(side.hidden)
        if side.weight is None:
            return cls(states, None, None, side.tail, vocabulary)
        if states.device.type == "cpu" and dtype == torch.bfloat16:  # few shapes: see `segments.rounded`
            states = nn.functional.pad(states, (0, 0, 0, rounded(count) - count))
        bias = None if side.bias is None else side.bias.detach()[:vocabulary].to(dtype)
        return cls(states, side.weight.detach()[:vocabulary].to(dtype), bias, side.tail, vocabulary)

    def logits(self, piece: slice, real: int, wide: torch.dtype) -> torch.Tensor:
        """(real, V): of the states of a piece, of which the first ``real`` stand for positions."""
        states = self.states[piece]
        if self.table is None:
            output = states[:, : self.vocabulary]
        else:
            output = states @ self.table.T if self.bias is None else torch.addmm(self.bias, states, self.table.T)
        return self.tail(output[:real].to(wide))


class _Pieces(torch.autograd.Function):
    """Summed divergence and that of each position."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        tail: Tail,
        teacher: Side,
        measure: _Measure,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wide, given = measure.wide, (hidden, weight, bias)
        student = Side(hidden, weight, bias, tail)
        vocabulary = min(student.vocabulary, teacher.vocabulary)
        ours = _Head.of(student, measure.student, vocabulary)
        theirs = _Head.of(teacher, measure.teacher, vocabulary)
        kinds = (measure.student, wide, wide)
        grads = [
            torch.zeros_like(each, dtype=kind) if want and measure.learns and each is not None else None
            for each, kind, want in zip(given, kinds, ctx.needs_input_grad[:3], strict=True)
        ]
        count = len(hidden)
        each = torch.empty(count, dtype=wide, device=hidden.device)
        limit = PIECE_BYTES.get(hidden.device.type, PIECE_BYTES["cuda"])
        size = max(1, limit // (wide.itemsize * vocabulary))
        for start in range(0, count, size):
            rows, real = slice(start, start + size), min(size, count - start)
            each[rows], grad = _piece(ours, theirs, rows, real, measure)
            if grad is not None:
                _add(grads, grad, ours, rows)
            del grad
        ctx.grads, ctx.dtypes = grads, [None if leaf is None else leaf.dtype for leaf in given]
        ctx.mark_non_differentiable(each)
        return (each if measure.weights is None else each * measure.weights.to(wide)).sum(), each

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor, _: Any) -> tuple[Any, ...]:  # type: ignore[override]
        # times 1 / the number of positions, which bfloat16 would round: always in float32 or wider
        found = (
            None if grad is None else grad.to(upstream.dtype).mul_(upstream).to(dtype)
            for grad, dtype in zip(ctx.grads, ctx.dtypes, strict=True)
        )
        ctx.grads = None
        return (*found, None, None, None)


def _piece(
    ours: _Head, theirs: _Head, rows: slice, real: int, measure: _Measure
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The divergence (n,) at a piece's positions, and the gradient (n, V) of its share of the total."""
    wide, tail = measure.wide, ours.tail
    logits = ours.logits(rows, real, wide)
    slope = None if tail.cap is None or not measure.learns else 1 - (logits / tail.cap).square_()
    log_q = (logits / measure.temperature).log_softmax(-1)
    del logits
    log_p = (theirs.logits(rows, real, wide) / measure.temperature).log_softmax(-1)
    each, grad = measure(log_q, log_p)
    if grad is None:
        return each, None
    grad.mul_(tail.scale / measure.temperature)
    if slope is not None:
        grad.mul_(slope)
    if measure.weights is not None:
        grad.mul_(measure.weights[rows, None])
    return each, grad.to(measure.student)


def _add(grads: list[torch.Tensor | None], grad: torch.Tensor, head: _Head, rows: slice) -> None:
    """Adds what a piece's gradient (n, V) by the head's output gives for (hidden, weight, bias)."""
    hidden, weight, bias = grads
    real = len(grad)
    if head.table is None:
        assert hidden is not None
        hidden[rows, : head.vocabulary] = grad
        return
    states = head.states[rows]
    if len(states) > real:
        grad = nn.functional.pad(grad, (0, 0, 0, len(states) - real))
    if hidden is not None:
        hidden[rows] = (grad @ head.table)[:real]
    if weight is not None:
        share = weight[: head.vocabulary]
        if grad.dtype == weight.dtype:
            share.addmm_(grad.T, states)
        else:
            share.add_(grad.T @ states)
    if bias is not None:
        bias[: head.vocabulary].add_(grad.sum(0, dtype=bias.dtype))
