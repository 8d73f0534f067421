"""How likely a model finds rows of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def perplexity(model: Any, rows: Sequence[Sequence[int]]) -> float:
    """exp of the mean negative log-likelihood of every token but each row's first; infinite where it is no number.

    Args:
        model: in evaluation mode.
        rows: token ids, (row, token).
    """
    import torch
    from torch.nn.functional import cross_entropy

    loss, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([list(row)], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            loss += float(cross_entropy(logits, ids[0, 1:], reduction="sum"))
            count += len(row) - 1
    mean = loss / max(1, count)
    return math.exp(mean) if math.isfinite(mean) and mean < 700 else math.inf
