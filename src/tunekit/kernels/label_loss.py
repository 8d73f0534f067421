"""Cross-entropy at labelled positions, in pieces: the logits of a batch never exist as a whole.

A hook hands the output embedding no position at all, so that the model makes no logits; loss and gradients are computed
there from the hidden states, piece by piece, in the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunekit.kernels.token_logps import Pieces, TokenLogps, arithmetic, logps_of, no_grads, times, token_logps
from tunekit.kernels.token_logps import Tail as Tail

_TRIED, _LARGE = 7, 100.0
"""Tokens of the pass that finds out what a model does to its logits, and the largest of the head's output in it."""


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
        asked, outputs = self._run(
            model, inputs, keep, lambda hidden, tail: _loss(hidden, self.head, targets, tail, smoothing)
        )
        if self.tail is not None:
            total, correct = asked.found
            return LabelLoss(total, correct, outputs)
        logits = outputs.logits[0].float()  # (L, V)
        total = nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
        return LabelLoss(total, (logits.detach().argmax(-1) == targets).sum(), outputs)

    def logps(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        keep: torch.Tensor,
        targets: torch.Tensor,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
    ) -> TokenLogps:
        """Runs a model, and computes the log-probabilities of tokens where its head stands.

        Args:
            model: as for `loss`.
            inputs: as for `loss`.
            keep: (L,) positions of the flattened (B, T); one may stand there several times.
            targets: (L,) the token after each.
            temperature: divides the logits.
            entropy: of the distribution at each position; wanted or not.
        """
        options: dict[str, Any] = {"temperature": temperature, "entropy": entropy}
        asked, outputs = self._run(
            model, inputs, keep, lambda hidden, tail: token_logps(hidden, self.head, targets, tail, **options)
        )
        found = asked.found if self.tail is not None else logps_of(outputs.logits[0], targets, **options)
        assert asked.hidden is not None, "the head was called without its hook"
        logps, spread, correct = found
        return TokenLogps(logps, spread, correct, asked.hidden, outputs)

    def states(self, model: nn.Module, inputs: Mapping[str, Any], keep: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Runs a model without its head: what the head would be given at ``keep`` (L, E), and the model's outputs.

        Where there is no ``tail``: the logits (L, V) that the model makes of it.

        Args:
            model: as for `loss`.
            inputs: as for `loss`.
            keep: as for `logps`.
        """
        asked, outputs = self._run(model, inputs, keep, lambda hidden, tail: ())
        if self.tail is None:
            return outputs.logits[0], outputs
        assert asked.hidden is not None, "the head was called without its hook"
        return asked.hidden, outputs

    def _run(
        self, model: nn.Module, inputs: Mapping[str, Any], keep: torch.Tensor, work: Callable[..., tuple[Any, ...]]
    ) -> tuple[_Asked, Any]:
        """A forward pass in which the head does this work instead of its own, where it can."""
        asked = self.asked = _Asked(tuple(inputs["input_ids"].shape), keep, work)
        try:
            return asked, model(**inputs, use_cache=False)
        finally:
            self.asked = None

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
            asked.found = asked.work(asked.hidden, self.tail)


@dataclass
class _Asked:
    """One forward pass in which the head is to do some work on the hidden states at ``keep``."""

    shape: tuple[int, ...]
    keep: torch.Tensor
    work: Callable[..., tuple[Any, ...]]
    hidden: torch.Tensor | None = None
    found: tuple[Any, ...] = ()


def _loss(
    hidden: torch.Tensor, head: nn.Module, targets: torch.Tensor, tail: Tail, smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """In the arithmetic of the forward pass around it."""
    dtype = arithmetic(hidden, head.weight)  # type: ignore[arg-type]
    with torch.autocast(hidden.device.type, enabled=False):
        learns = torch.is_grad_enabled()  # within the function it never is
        values = _LossInPieces.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, head.bias, targets, tail, smoothing, dtype, learns
        )
    return values[0], values[1]


class _LossInPieces(torch.autograd.Function):
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
        given, wanted = (hidden, weight, bias), [learns and want for want in ctx.needs_input_grad[:3]]
        grads = no_grads(given, wanted, dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        correct = torch.zeros((), dtype=torch.long, device=hidden.device)
        pieces = Pieces.of(hidden, weight, bias, tail, dtype)
        for rows in pieces.rows():
            labels = targets[rows, None]
            logits, slope = pieces.logits(rows)
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
            pieces.add(grads, grad, slope, rows)
        ctx.grads, ctx.dtypes = grads, [None if each is None else each.dtype for each in given]
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor, _: Any) -> tuple[Any, ...]:  # type: ignore[override]
        found = times(ctx.grads, upstream, ctx.dtypes)
        ctx.grads = None
        return (*found, None, None, None, None, None)
