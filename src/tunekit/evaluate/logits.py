"""A model's logits at chosen positions, without computing those of the others."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from tunekit.evaluate.mode import has_virtual_tokens, plain_model

if TYPE_CHECKING:
    import torch


def logits_at(model: Any, ids: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, **options: Any) -> torch.Tensor:
    """Logits at the positions (``rows``, ``columns``) of right-padded ``ids``.

    The model's own forward runs, so whatever it does to its logits (scaling, soft-capping) is done. A hook before the
    output embedding hands that module the chosen positions alone; a model that does not call it on hidden states of
    shape (B, T, H) is computed in full, and the positions are picked from its logits. No attention mask is passed: a
    causal model sees no padding that stands to the right. Virtual tokens that a PEFT method puts before the text are
    skipped.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        ids: (B, T) token ids.
        rows: (L,) row of each position wanted.
        columns: (L,) column of each position wanted.
        options: further arguments of the model's forward; by default neither cache nor mask.

    Returns:
        (L, V) logits in the model's dtype.
    """
    batch, tokens = ids.shape
    chosen = False

    def choose(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal chosen
        if not args or args[0].dim() != 3 or args[0].shape[0] != batch or args[0].shape[1] < tokens:
            return None
        chosen = True
        hidden = args[0]
        at = columns + (hidden.shape[1] - tokens)
        return (hidden[rows.to(hidden.device), at.to(hidden.device)].unsqueeze(0), *args[1:])

    head = plain_model(model).get_output_embeddings()
    hook = head.register_forward_pre_hook(choose) if head is not None else None
    try:
        logits: torch.Tensor = model(input_ids=ids, **(options or _options(model, ids))).logits
    finally:
        if hook is not None:
            hook.remove()
    if chosen:
        assert logits.shape[:2] == (1, len(rows)), f"{tuple(logits.shape)} for {len(rows)} positions"
        return logits[0]
    assert logits.shape[0] == batch and logits.shape[1] >= tokens, f"{tuple(logits.shape)} for {tuple(ids.shape)}"
    return logits[rows.to(logits.device), (columns + (logits.shape[1] - tokens)).to(logits.device)]


def _options(model: Any, ids: torch.Tensor) -> dict[str, Any]:
    """``use_cache`` and ``position_ids`` where the model takes them; PEFT's virtual tokens forbid the latter."""
    import torch

    accepted = inspect.signature(type(plain_model(model)).forward).parameters
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
    if "position_ids" in accepted and not has_virtual_tokens(model):
        options["position_ids"] = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    return options
