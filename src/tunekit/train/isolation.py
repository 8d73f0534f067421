"""Packing is allowed only to models that keep packed examples apart: each is asked before it trains, not trusted."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from tunekit.core.errors import UserError
from tunekit.data.collate import Collator

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LENGTH = 12
"""Tokens of each probed example: more than the convolutions of hybrid models reach."""


def check_isolated(
    model: PreTrainedModel, collator: Collator, rows: int, arithmetic: AbstractContextManager[object]
) -> None:
    """Runs two packed examples twice, with other tokens in the first, and looks whether the second notices.

    Attention keeps packed examples apart by their restarting positions. State-space, convolution and ALiBi layers do
    not, nor does attention that is given a mask, nor flash attention with several rows in a batch.

    Args:
        model: on its device.
        collator: the one that training uses.
        rows: rows of the probed batch, as many as a micro-batch has.
        arithmetic: the context of training's mixed precision.

    Raises:
        UserError: the second example's logits depend on the first; names the kind of model.
    """
    import torch

    before = model.training
    model.eval()
    with torch.no_grad(), arithmetic:
        first, other = _logits(model, collator, rows, 0), _logits(model, collator, rows, LENGTH)
    model.train(before)
    moved = (first.float() - other.float()).abs()  # (rows, 2 x LENGTH, V)
    own, leaked = float(moved[:, :LENGTH].max()), float(moved[:, LENGTH:].max())
    if leaked > max(1e-4, 4 * torch.finfo(first.dtype).eps) * own:
        config = model.config.get_text_config()
        attention = config._attn_implementation
        flash = rows > 1 and "flash" in str(attention)
        more = ", or set train.micro_batch_size: 1, or model.attention: sdpa" if flash else ""
        raise UserError(
            f"packed examples see each other in this model ({config.model_type}, attention {attention})",
            where="data.packing",
            fix=f"set data.packing: false{more}",
        )


def _logits(model: PreTrainedModel, collator: Collator, rows: int, shift: int) -> torch.Tensor:
    """Logits (rows, 2 x LENGTH, V) of two packed examples; ``shift`` changes the tokens of the first."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = [(shift + token) % vocabulary for token in range(LENGTH)] + [token % vocabulary for token in range(LENGTH)]
    example = {"input_ids": ids, "labels": [-100] * len(ids), "position_ids": [*range(LENGTH), *range(LENGTH)]}
    batch = collator([example] * rows)
    inputs = {name: value.to(model.device) for name, value in batch.items() if name not in ("labels", "tokens", "rows")}
    values: torch.Tensor = model(**inputs, use_cache=False).logits[:, : len(ids)]
    return values
