"""A micro-batch as one flat row: its documents lie one after another, and no position is padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import torch

from tunekit.core.types import IGNORED


@dataclass(frozen=True)
class Segments:
    """Where the documents lie in a flat row of N tokens, the longest first.

    Args:
        lengths: tokens of each, on the host: nothing has to wait for the device to know them.
        starts: (S + 1,) int32 on the device: where each begins, and N.
        filler: so many tokens at the end are none.
    """

    lengths: tuple[int, ...]
    starts: torch.Tensor
    filler: int = 0

    def to(self, device: torch.device) -> Segments:
        """The same, on a device."""
        return replace(self, starts=self.starts.to(device, non_blocking=True))

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return max(self.lengths)

    @cached_property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """(number of documents, their length), for each length: those of one length lie side by side."""
        return tuple((len(list(same)), length) for length, same in groupby(self.lengths))


def rounded(tokens: int) -> int:
    """The next length of a small set: 16 between a power of two and the next from 256 on, multiples of 8 below.

    bfloat16 on a CPU has its matrix code made anew for each shape, which takes longer than running it once.
    """
    step = max(8, 1 << max(0, tokens.bit_length() - 5))
    return -(-tokens // step) * step


def flatten(batch: Mapping[str, Any], *, few_shapes: bool = False) -> dict[str, Any]:
    """The same examples without padding: shapes (1, N) in the place of (B, T).

    Documents are told apart by positions that begin anew at 0. A label is predicted from the token before it in the
    same document, so the first label of each is left out.

    Args:
        batch: of the collator: ``input_ids``, ``labels``, ``position_ids`` (B, T); ``tokens`` (B,), the real lengths.
        few_shapes: one more document, without a label, makes N `rounded`.

    Returns:
        ``input_ids``, ``position_ids`` (1, N); ``keep`` (L,), the positions in 0..N-1 whose next token is trained;
        ``targets`` (L,), those tokens; ``segments``.
    """
    ids, positions, labels = batch["input_ids"], batch["position_ids"], batch["labels"]
    rows, width = ids.shape
    tokens = batch["tokens"].to(ids.device).clamp(min=1)  # a filler has one token, which counts as none
    real = torch.arange(width, device=ids.device) < tokens[:, None]
    begins = (real & (positions == 0)).flatten().nonzero().flatten()  # (S,)
    row_ends = torch.arange(rows, device=ids.device) * width + tokens
    following = torch.cat([begins[1:], row_ends[-1:]])
    lengths = torch.minimum(following, row_ends[begins // width]) - begins
    order = torch.sort(lengths, descending=True, stable=True).indices
    begins, lengths = begins[order], lengths[order]
    starts = torch.zeros(len(lengths) + 1, dtype=torch.long, device=ids.device)
    torch.cumsum(lengths, 0, out=starts[1:])
    taken = torch.arange(int(starts[-1]), device=ids.device) + torch.repeat_interleave(begins - starts[:-1], lengths)
    following_labels = labels.flatten()[taken].roll(-1)
    following_labels[starts[1:] - 1] = IGNORED
    flat, places, sizes = ids.flatten()[taken], positions.flatten()[taken], lengths.tolist()
    more = rounded(len(taken)) - len(taken) if few_shapes else 0
    if more:
        flat, places = torch.cat([flat, flat.new_zeros(more)]), torch.cat([places, torch.arange(more).to(places)])
        starts, sizes = torch.cat([starts, starts[-1:] + more]), [*sizes, more]
    return {
        "input_ids": flat[None],
        "position_ids": places[None],
        **_kept(following_labels),
        "segments": Segments(tuple(sizes), starts.to(torch.int32), more),
    }


def label_positions(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """``keep`` and ``targets`` of a padded batch, as in `flatten`; positions are those of the flattened (B, T)."""
    following = labels.roll(-1, dims=1)
    following[:, -1] = IGNORED
    return _kept(following.flatten())


def _kept(following: torch.Tensor) -> dict[str, torch.Tensor]:
    keep = (following != IGNORED).nonzero().flatten()
    return {"keep": keep, "targets": following[keep]}
