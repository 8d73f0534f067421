"""Batches: right-padded, with positions instead of an attention mask."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.core.types import IGNORED

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Collator:
    """Stacks examples of different lengths.

    A causal model never looks to the right, so right padding needs no attention mask; leaving it out keeps attention
    on its fast path (a dense mask was the largest single slowdown measured). Packed rows restart ``position_ids`` at
    each example, by which the examples of a row are told apart.

    Args:
        pad_id: token that fills up; its labels are ignored by position, so it may equal a real token such as EOS.
        with_mask: also return a 2D attention mask, for models that count their tokens by it (mixture of experts).
        multiple: lengths are rounded up to this.
    """

    pad_id: int
    with_mask: bool = False
    multiple: int = 8

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """``input_ids``, ``labels``, ``position_ids`` of shape (B, T); ``tokens``, the real lengths, of shape (B,).

        ``rows`` of shape (B, R) holds the ledger's numbers of the rows in each example, filled up with -1. Groups (a
        beginning and branches that go on from it) also give ``branches`` of shape (B, K), the tokens of each branch,
        filled up with 0, and ``score`` of shape (B,), NaN where there is none.
        B: examples; T: the longest example, rounded up; R: the most rows that an example holds; K: the most branches.
        """
        import torch

        longest = max(len(example["input_ids"]) for example in examples)
        length = -(-longest // self.multiple) * self.multiple
        ids = torch.full((len(examples), length), self.pad_id, dtype=torch.long)
        labels = torch.full((len(examples), length), IGNORED, dtype=torch.long)
        positions = torch.arange(length).repeat(len(examples), 1)  # padding goes on counting: no new segment
        mask = torch.zeros((len(examples), length), dtype=torch.long)
        for row, example in enumerate(examples):
            size = len(example["input_ids"])
            ids[row, :size] = torch.as_tensor(example["input_ids"])
            labels[row, :size] = torch.as_tensor(example["labels"])
            mask[row, :size] = 1
            if example.get("position_ids") is not None:
                own = torch.as_tensor(example["position_ids"])
                positions[row, :size] = own
                positions[row, size:] = torch.arange(1, length - size + 1) + int(own[-1])
        tokens = torch.tensor([0 if example.get("empty") else len(example["input_ids"]) for example in examples])
        batch = {"input_ids": ids, "labels": labels, "position_ids": positions}
        batch |= {"tokens": tokens, "rows": _filled([example.get("rows") for example in examples], -1)}
        branches = [example.get("branches") for example in examples]
        if any(sizes is not None for sizes in branches):
            scores = [example.get("score") for example in examples]
            batch["branches"] = _filled(branches, 0)
            batch["score"] = torch.tensor([math.nan if score is None else score for score in scores])
        return batch | {"attention_mask": mask} if self.with_mask else batch


def _filled(numbers: Sequence[Sequence[int] | None], filler: int) -> torch.Tensor:
    import torch

    rows = [list(row or ()) for row in numbers]
    most = max(1, *(len(row) for row in rows))
    return torch.tensor([row + [filler] * (most - len(row)) for row in rows], dtype=torch.long)
