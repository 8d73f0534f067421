"""Muon for the matrices of the layers, AdamW for embeddings, heads, norms and biases, as one optimizer.

Muon orthogonalizes the momentum of a matrix (K. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; torch's
own `torch.optim.Muon`). Its steps are scaled to the size of AdamW's (``match_rms_adamw``, arXiv 2502.16982), so one
learning rate and one schedule serve both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MuonAdamW(torch.optim.Optimizer):
    """Both optimizers behind one set of parameter groups; learning-rate schedulers see all of them.

    Args:
        named: trainable parameters with their names.
        tables: parameters that are looked up rather than multiplied (embeddings, LM head): they take AdamW.
        lr: peak learning rate of both.
        weight_decay: of the matrices; vectors and tables are not decayed.
        betas, eps: of AdamW.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        tables: set[nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        trainable = [parameter for _, parameter in named if parameter.requires_grad]
        matrices = [p for p in trainable if p.ndim == 2 and p not in tables]
        others = [p for p in trainable if p.ndim != 2 or p in tables]
        assert matrices, "Muon needs at least one matrix"
        self.muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        inner: list[torch.optim.Optimizer] = [self.muon]
        if others:
            inner.append(torch.optim.AdamW(others, lr=lr, weight_decay=0.0, betas=betas, eps=eps, fused=True))
        self.inner = inner
        super().__init__(trainable, {"lr": lr})
        self.param_groups = [group for optimizer in inner for group in optimizer.param_groups]  # shared, not copied

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both; ``closure`` recomputes the loss first."""
        loss = closure() if closure is not None else None
        for optimizer in self.inner:
            optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients."""
        for optimizer in self.inner:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"inner": [optimizer.state_dict() for optimizer in self.inner]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the states of both."""
        for optimizer, state in zip(self.inner, state_dict["inner"], strict=True):
            optimizer.load_state_dict(state)
        self.param_groups = [group for optimizer in self.inner for group in optimizer.param_groups]


_HEADS = ("score", "value_head")
"""Of one output each: there is nothing to make orthogonal."""


def muon_for(
    model: PreTrainedModel, *, lr: float, weight_decay: float, betas: tuple[float, float], eps: float
) -> MuonAdamW:
    """The optimizer for a causal language model: its embedding and LM head count as tables."""
    tables = {p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    head = model.get_output_embeddings()
    if head is not None:
        tables |= set(head.parameters())
    heads = [module for name, module in model.named_modules() if name.rpartition(".")[2] in _HEADS]
    tables |= {parameter for module in heads for parameter in module.parameters()}
    return MuonAdamW(model.named_parameters(), tables, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps)
