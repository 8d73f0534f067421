"""Cross-entropy at labelled positions, in pieces: the logits of a batch never exist as a whole.

A hook hands the output embedding no position at all, so that the model makes no logits; loss and gradients are computed
there from the hidden states, piece by piece, in the forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunekit.kernels.segments import rounded

PIECE_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
"""Bytes of the float32 logits of one piece."""
_TRIED, _LARGE = 7, 100.0
"""Tokens of the pass that finds out what a model does to its logits, and the largest of the head's output in it."""


@dataclass(frozen=True)
class Tail:
    """What a model does to its head's output: logits = cap x tanh(output x scale / cap); output x scale without."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """Logits of the head's output."""
        output = output if self.scale == 1.0 else output * self.scale
        return output if self.cap is None else self.cap * torch.tanh(output / self.cap)


@dataclass(frozen=True)
class LabelLoss:
    """Sums over the labelled positions: of the loss, and of those whose likeliest token is the right one."""

    total: torch.Tensor
    correct: torch.Tensor
    outputs: Any


def find_tail(model: Any, head: nn.Module) -> Tail | None:
    """How a model makes logits of its head's output, measured on a few tokens; None when it is neither known form.

    None too for a head that is not a plain linear layer (an adapter on it, quantized weights): then `LabelHead` lets
    the model make the logits of the labelled positions itself.

    Args:
        model: a causal language model, on its device; its mode is kept.
        head: its output embedding.
    """
    if type(head) is not nn.Linear:
        return None
    seen: list[torch.Tensor] = []

    def enlarge(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        """What bends logits shows where they are large."""
        seen.append(output * (_LARGE / output.abs().amax().clamp(min=1e-9)))
        return seen[-1]

    hook = head.register_forward_hook(enlarge)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            ids = torch.arange(_TRIED, device=head.weight.device)[None] % head.weight.shape[0]
            logits = model(input_ids=ids, use_cache=False).logits.double()
    finally:
        hook.remove()
        for module, training in modes:
            module.training = training
    if len(seen) != 1 or seen[0].shape != logits.shape:
        return None
    output = seen[0].double()
    if not (output.isfinite().all() and logits.isfinite().all()):
        return None  # a broken model: its loss says so
    options = model.config.get_text_config().to_dict().items()
    caps = [float(value) for name, value in options if "cap" in name and isinstance(value, int | float) and value > 0]
    found = (_fitted(output, logits, cap) for cap in (None, *caps))
    return next((tail for tail in found if tail is not None), None)


def _fitted(output: torch.Tensor, logits: torch.Tensor, cap: float | None) -> Tail | None:
    """The tail with this cap that makes these logits of this output; None when there is none."""
    straight = logits if cap is None else cap * torch.atanh((logits / cap).clamp(-0.9, 0.9))
    told = logits.abs() < (torch.inf if cap is None else 0.9 * cap)  # near the cap nothing can be told
    ratio = float((straight * output)[told].sum() / output[told].square().sum())
    tail = Tail(1.0 if abs(ratio - 1) < 4e-3 else ratio, cap)
    near = torch.allclose(tail(output), logits, rtol=8e-3, atol=8e-3 * float(logits.abs().max()))
    return tail if near else None


class LabelHead:
    """Stands at a model's output embedding and computes the loss there, when it is asked to.

    Otherwise the head makes logits as ever, for generation and evaluation.

    Args:
        head: the output embedding.
        tail: of `find_tail`.
        compiled: the model is going to be compiled: the loss is kept out of its graph.
    """

    def __init__(self, head: nn.Module, tail: Tail | None, *, compiled: bool = False) -> None:
        self.head, self.tail = head, tail
        self.asked: _Asked | None = None
        before: Any = self._before
        after: Any = self._after
        if compiled:
            before, after = map(torch.compiler.disable, (before, after))
        head.register_forward_pre_hook(before)
        head.register_forward_hook(after)

    def loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        keep: torch.Tensor,
        targets: torch.Tensor,
        smoothing: float = 0.0,
    ) -> LabelLoss:
        """Runs a model, and computes the loss where its head stands.

        Args:
            model: a causal language model with this head, possibly wrapped (DDP, PEFT).
            inputs: of the model, (B, T) each; no labels.
            keep: (L,) positions of the flattened (B, T) whose next token is trained.
            targets: (L,) those tokens.
            smoothing: label smoothing: so much of the target's probability is spread over all V tokens.
        """
        asked = self.asked = _Asked(tuple(inputs["input_ids"].shape), keep, targets, smoothing)
        try:
            outputs = model(**inputs, use_cache=False)
        finally:
            self.asked = None
        if self.tail is not None:
            return LabelLoss(asked.found[0], asked.found[1], outputs)
        logits = outputs.logits[0].float()  # (L, V)
        total = nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
        return LabelLoss(total, (logits.detach().argmax(-1) == targets).sum(), outputs)

    def _before(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        asked = self.asked
        if asked is None:
            return None
        rows, width = asked.shape
        hidden = args[0][:, -width:]  # virtual tokens of an adapter stand before the text
        assert hidden.shape[:2] == (rows, width), f"{tuple(hidden.shape)} for ({rows}, {width}) tokens"
        asked.hidden = hidden.reshape(rows * width, -1)[asked.keep]  # (L, E)
        return ((asked.hidden if self.tail is None else asked.hidden[:0])[None], *args[1:])

    def _after(self, _module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        asked = self.asked
        if asked is not None and self.tail is not None:
            assert asked.hidden is not None, "the head was called without its hook"
            asked.found = _loss(asked.hidden, self.head, asked.targets, self.tail, asked.smoothing)


@dataclass
class _Asked:
    """One forward pass whose loss is wanted."""

    shape: tuple[int, ...]
    keep: torch.Tensor
    targets: torch.Tensor
    smoothing: float
    hidden: torch.Tensor | None = None
    found: tuple[torch.Tensor, torch.Tensor] = ()  # type: ignore[assignment]


def _loss(
    hidden: torch.Tensor, head: nn.Module, targets: torch.Tensor, tail: Tail, smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """In the arithmetic of the forward pass around it."""
    device = hidden.device.type
    mixed = torch.is_autocast_enabled(device)
    weight, bias = head.weight, head.bias
    dtype = torch.get_autocast_dtype(device) if mixed else weight.dtype
    with torch.autocast(device, enabled=False):
        learns = torch.is_grad_enabled()  # within the function it never is
        values = _Pieces.apply(hidden, weight, bias, targets, tail, smoothing, dtype, learns)  # type: ignore[no-untyped-call]
    return values[0], values[1]


class _Pieces(torch.autograd.Function):
    """Summed cross-entropy; its gradients are computed beside it, while a piece's logits are there."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        tail: Tail,
        smoothing: float,
        dtype: torch.dtype,
        learns: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = [learns and want for want in ctx.needs_input_grad[:3]]
        table, states = weight.to(dtype), hidden.to(dtype)  # (V, E), (L, E)
        grads = [
            torch.zeros_like(each, dtype=kind) if want and each is not None else None
            for each, kind, want in zip(
                (hidden, weight, bias), (dtype, torch.float32, torch.float32), wanted, strict=True
            )
        ]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        correct = torch.zeros((), dtype=torch.long, device=hidden.device)
        labelled = len(targets)
        if hidden.device.type == "cpu" and dtype == torch.bfloat16:  # few shapes: see `segments.rounded`
            states = nn.functional.pad(states, (0, 0, 0, rounded(labelled) - labelled))
        size = max(1, PIECE_BYTES.get(hidden.device.type, PIECE_BYTES["cuda"]) // (4 * table.shape[0]))
        for start in range(0, labelled, size):
            piece, labels = states[start : start + size], targets[start : start + size, None]
            real = len(labels)
            logits = (piece @ table.T if bias is None else torch.addmm(bias.to(dtype), piece, table.T))[:real].float()
            slope = _bend(logits, tail)
            top, likeliest = logits.max(-1, keepdim=True)
            right = logits.gather(-1, labels)
            correct += (likeliest == labels).sum()
            mean = logits.mean(-1, keepdim=True) if smoothing else right
            logits.sub_(top).exp_()
            norm = logits.sum(-1, keepdim=True)
            total += (norm.log() + top - (1 - smoothing) * right - smoothing * mean).sum()
            if not any(wanted):
                continue
            grad = logits.div_(norm)  # d loss / d logits = softmax - target
            grad.scatter_add_(-1, labels, torch.full_like(right, smoothing - 1))
            if smoothing:
                grad.sub_(smoothing / grad.shape[-1])
            if slope is not None:
                grad.mul_(slope)
            grad = grad.to(dtype)
            if len(piece) > real:
                grad = nn.functional.pad(grad, (0, 0, 0, len(piece) - real))
            _add_grads(grads, grad, piece, table, slice(start, start + real))
        ctx.grads, ctx.dtypes = grads, [None if each is None else each.dtype for each in (hidden, weight, bias)]
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor, _: Any) -> tuple[Any, ...]:  # type: ignore[override]
        # times 1 / the number of labels, which bfloat16 would round: always in float32
        hidden, weight, bias = (
            None if grad is None else grad.float().mul_(upstream).to(dtype)
            for grad, dtype in zip(ctx.grads, ctx.dtypes, strict=True)
        )
        ctx.grads = None
        return hidden, weight, bias, None, None, None, None, None


def _bend(output: torch.Tensor, tail: Tail) -> torch.Tensor | None:
    """Turns a head's output into logits, in place; returns d logits / d output where that is not 1."""
    if tail.scale != 1.0:
        output.mul_(tail.scale)
    if tail.cap is None:
        return None if tail.scale == 1.0 else output.new_full((1, 1), tail.scale)
    output.div_(tail.cap).tanh_()
    slope = (1 - output.square()).mul_(tail.scale)
    output.mul_(tail.cap)
    return slope


def _add_grads(
    grads: list[torch.Tensor | None], grad: torch.Tensor, piece: torch.Tensor, table: torch.Tensor, rows: slice
) -> None:
    """Adds a piece's share to the gradients of (hidden, weight, bias)."""
    hidden, weight, bias = grads
    if hidden is not None:
        hidden[rows] = (grad @ table)[: rows.stop - rows.start]
    if weight is not None:
        if grad.dtype == torch.float32:
            weight.addmm_(grad.T, piece)
        else:
            weight.add_(grad.T @ piece)
    if bias is not None:
        bias.add_(grad.sum(0, dtype=torch.float32))
