"""Log-probabilities of given tokens, in pieces: neither the logits of a batch nor their gradient exist as a whole.

The forward pass keeps one number a token; the backward pass makes the logits of a piece again. What any loss needs that
is computed from a head in pieces is here as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunekit.kernels.segments import rounded

PIECE_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
"""Bytes of the float32 logits of one piece."""
Grads = list[torch.Tensor | None]
"""Gradients of (hidden, weight, bias), None where none is wanted."""


@dataclass(frozen=True)
class Tail:
    """What a model does to its head's output: logits = cap x tanh(output x scale / cap); output x scale without."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """Logits of the head's output."""
        output = output if self.scale == 1.0 else output * self.scale
        return output if self.cap is None else self.cap * torch.tanh(output / self.cap)

    def bend(self, output: torch.Tensor) -> torch.Tensor | None:
        """Turns a head's output into logits, in place; returns d logits / d output where that is not 1."""
        if self.scale != 1.0:
            output.mul_(self.scale)
        if self.cap is None:
            return None if self.scale == 1.0 else output.new_full((1, 1), self.scale)
        output.div_(self.cap).tanh_()
        slope = (1 - output.square()).mul_(self.scale)
        output.mul_(self.cap)
        return slope


@dataclass(frozen=True)
class TokenLogps:
    """Of L tokens.

    Args:
        logps: (L,) float32 log-probabilities in nats, with gradient.
        entropy: (L,) float32 of the distribution each is taken from, in nats, without gradient; None if not asked for.
        correct: (L,) bool: the token is the likeliest.
        hidden: (L, E) what the head was given, with gradient.
        outputs: of the model.
    """

    logps: torch.Tensor
    entropy: torch.Tensor | None
    correct: torch.Tensor
    hidden: torch.Tensor
    outputs: Any


def arithmetic(hidden: torch.Tensor, weight: torch.Tensor) -> torch.dtype:
    """The dtype of the head's matrix products in the forward pass around it."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


@dataclass(frozen=True)
class Pieces:
    """A head and what it is given, in the arithmetic of a pass.

    Args:
        states: (L or more, E); what is more only fills up.
        table: (V, E) the head's weight.
        bias: (V,).
        tail: what the model does to the head's output.
        count: L.
    """

    states: torch.Tensor
    table: torch.Tensor
    bias: torch.Tensor | None
    tail: Tail
    count: int

    @classmethod
    def of(
        cls, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tail: Tail, dtype: torch.dtype
    ) -> Pieces:
        """Of (L, E) states and a head, in a dtype."""
        states, count = hidden.to(dtype), len(hidden)
        if hidden.device.type == "cpu" and dtype == torch.bfloat16:  # few shapes: see `segments.rounded`
            states = nn.functional.pad(states, (0, 0, 0, rounded(count) - count))
        return cls(states, weight.to(dtype), None if bias is None else bias.to(dtype), tail, count)

    @property
    def size(self) -> int:
        """Positions of a piece."""
        return max(1, PIECE_BYTES.get(self.states.device.type, PIECE_BYTES["cuda"]) // (4 * self.table.shape[0]))

    def rows(self) -> Iterator[slice]:
        """The positions of one piece after another, 0..L-1 in all."""
        size = self.size
        return (slice(start, min(start + size, self.count)) for start in range(0, self.count, size))

    def _padded(self, rows: slice) -> torch.Tensor:
        """The states of a piece, and what fills it up."""
        return self.states[rows.start : rows.start + self.size]

    def logits(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Float32 logits of a piece, and d logits / d output where that is not 1."""
        piece, real = self._padded(rows), rows.stop - rows.start
        output = piece @ self.table.T if self.bias is None else torch.addmm(self.bias, piece, self.table.T)
        logits = output[:real].float()
        return logits, self.tail.bend(logits)

    def add(self, grads: Grads, grad: torch.Tensor, slope: torch.Tensor | None, rows: slice) -> None:
        """Adds a piece's share to the gradients; ``grad`` is that of its logits, and is written over."""
        hidden, weight, bias = grads
        piece, real = self._padded(rows), rows.stop - rows.start
        grad = (grad if slope is None else grad.mul_(slope)).to(self.states.dtype)
        if len(piece) > real:
            grad = nn.functional.pad(grad, (0, 0, 0, len(piece) - real))
        if hidden is not None:
            hidden[rows] = (grad @ self.table)[:real]
        if weight is not None:
            if grad.dtype == torch.float32:
                weight.addmm_(grad.T, piece)
            else:
                weight.add_(grad.T @ piece)
        if bias is not None:
            bias.add_(grad.sum(0, dtype=torch.float32))


def no_grads(given: tuple[torch.Tensor | None, ...], wanted: list[bool], dtype: torch.dtype) -> Grads:
    """Gradients of nothing yet, of (hidden, weight, bias): the head's are summed in float32."""
    return [
        torch.zeros_like(each, dtype=kind) if want and each is not None else None
        for each, kind, want in zip(given, (dtype, torch.float32, torch.float32), wanted, strict=True)
    ]


def times(grads: Grads, factor: torch.Tensor, dtypes: list[torch.dtype | None]) -> Grads:
    """The gradients times a number, in these dtypes; 1 / the number of labels would be rounded in bfloat16."""
    return [
        None if grad is None else grad.float().mul_(factor).to(dtype) for grad, dtype in zip(grads, dtypes, strict=True)
    ]


def token_logps(
    hidden: torch.Tensor,
    head: nn.Module,
    targets: torch.Tensor,
    tail: Tail,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Log-probabilities, entropy and `correct` of tokens, see `TokenLogps`, in the arithmetic of the pass around it.

    Args:
        hidden: (L, E) what the head is given.
        head: a linear layer.
        targets: (L,) the tokens.
        tail: what the model does to the head's output.
        temperature: divides the logits.
        entropy: whether it is asked for.
    """
    dtype = arithmetic(hidden, head.weight)  # type: ignore[arg-type]
    with torch.autocast(hidden.device.type, enabled=False):
        logps, spread, correct = _Logps.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, head.bias, targets, tail, temperature, entropy, dtype
        )
    return logps, spread if entropy else None, correct


def logps_of(
    logits: torch.Tensor, targets: torch.Tensor, *, temperature: float = 1.0, entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """The same from (L, V) logits that the model made itself; autograd keeps a float32 copy of them."""
    logits = logits.float()
    correct = logits.detach().argmax(-1) == targets
    distribution = (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)
    spread = None
    if entropy:
        size = max(1, PIECE_BYTES.get(logits.device.type, PIECE_BYTES["cuda"]) // (4 * logits.shape[-1]))
        spread = torch.cat([_entropy(piece.exp(), piece) for piece in torch.split(distribution.detach(), size)])
    return distribution.gather(-1, targets[:, None])[:, 0], spread, correct


def _entropy(chances: torch.Tensor, logps: torch.Tensor) -> torch.Tensor:
    """(n,) of (n, V), in nats; what cannot happen adds nothing. ``chances`` is written over."""
    return -torch.where(chances > 0, chances.mul_(logps), 0.0).sum(-1)


class _Logps(torch.autograd.Function):
    """Keeps what it was given and the logarithm of each softmax's sum."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        tail: Tail,
        temperature: float,
        entropy: bool,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        count = len(targets)
        logps, sums = torch.empty((2, count), dtype=torch.float32, device=hidden.device).unbind()
        spread = torch.empty(count if entropy else 0, dtype=torch.float32, device=hidden.device)
        correct = torch.empty(count, dtype=torch.bool, device=hidden.device)
        pieces = Pieces.of(hidden, weight, bias, tail, dtype)
        for rows in pieces.rows():
            logits, _ = pieces.logits(rows)
            likeliest = logits.argmax(-1)  # of the logits themselves: dividing may make equals of two
            if temperature != 1.0:
                logits.div_(temperature)
            correct[rows] = likeliest == targets[rows]
            sums[rows] = logits.logsumexp(-1)
            logps[rows] = logits.gather(-1, targets[rows, None])[:, 0] - sums[rows]
            if entropy:
                logits.sub_(sums[rows, None])
                spread[rows] = _entropy(logits.exp(), logits)
        ctx.save_for_backward(hidden, weight, bias, targets, sums)
        ctx.options = tail, temperature, dtype
        ctx.mark_non_differentiable(spread, correct)
        return logps, spread, correct

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, upstream: torch.Tensor, *_: Any) -> tuple[Any, ...]:  # type: ignore[override]
        hidden, weight, bias, targets, sums = ctx.saved_tensors
        tail, temperature, dtype = ctx.options
        given = hidden, weight, bias
        grads = no_grads(given, list(ctx.needs_input_grad[:3]), dtype)
        # shares of the largest: a hundred-thousandth, as a mean has it, would be lost in half precision
        largest = upstream.abs().amax() if len(upstream) else upstream.new_ones(())
        largest = torch.where(largest > 0, largest, 1.0)
        shares = (upstream / largest)[:, None]
        pieces = Pieces.of(hidden, weight, bias, tail, dtype)
        for rows in pieces.rows():
            logits, slope = pieces.logits(rows)
            if temperature != 1.0:
                logits.div_(temperature)
            grad = logits.sub_(sums[rows, None]).exp_().mul_(-shares[rows])  # of the logits: target - softmax
            grad.scatter_add_(-1, targets[rows, None], shares[rows])
            if temperature != 1.0:
                grad.div_(temperature)
            pieces.add(grads, grad, slope, rows)
        dtypes = [None if each is None else each.dtype for each in given]
        return (*times(grads, largest, dtypes), None, None, None, None, None)
