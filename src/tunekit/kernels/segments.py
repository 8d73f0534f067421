"""A micro-batch as one flat row: its documents lie one after another, and no position is padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import nn

from tunekit.core.types import IGNORED


@dataclass(frozen=True)
class Segments:
    """Where the documents lie in a flat row of N tokens: the longest first, then branches, then the filler.

    A branch is a document whose tokens see the beginning of another one before their own.

    Args:
        lengths: tokens of each, on the host: nothing has to wait for the device to know them.
        starts: (S + 1,) int32 on the device: where each begins, and N.
        filler: so many tokens at the end are none.
        prefixes: for each branch, the number of the document that it goes on from, and how many of its tokens it sees.
        key_starts: (S + 1,) int32 on the device, with branches: where the keys of each document begin when every branch
            has its own copy of what it sees.
    """

    lengths: tuple[int, ...]
    starts: torch.Tensor
    filler: int = 0
    prefixes: tuple[tuple[int, int], ...] = ()
    key_starts: torch.Tensor | None = None

    def to(self, device: torch.device) -> Segments:
        """The same, on a device."""
        keys = None if self.key_starts is None else self.key_starts.to(device, non_blocking=True)
        return replace(self, starts=self.starts.to(device, non_blocking=True), key_starts=keys)

    @property
    def longest(self) -> int:
        """Tokens of the longest document, without what a branch sees of another."""
        return max(self.lengths)

    @cached_property
    def seen(self) -> tuple[int, ...]:
        """How many tokens of another document each document sees."""
        plain = self.plain
        shared = [tokens for _, tokens in self.prefixes]
        return (*[0] * plain, *shared, *[0] * (len(self.lengths) - plain - len(shared)))

    @property
    def plain(self) -> int:
        """Documents before the first branch."""
        return len(self.lengths) - len(self.prefixes) - (self.filler > 0) if self.prefixes else len(self.lengths)

    @cached_property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """(number of documents, their length), for each shape: those of one lie side by side."""
        shapes = zip(self.lengths, self.seen, strict=True)
        return tuple((len(list(same)), length) for (length, _), same in groupby(shapes))


def rounded(tokens: int) -> int:
    """The next length of a small set: 16 between a power of two and the next from 256 on, multiples of 8 below.

    bfloat16 on a CPU has its matrix code made anew for each shape, which takes longer than running it once.
    """
    step = max(8, 1 << max(0, tokens.bit_length() - 5))
    return -(-tokens // step) * step


def sequences(batch: Mapping[str, Any]) -> torch.Tensor:
    """(B,) long: how many sequences each example of the collator's batch holds: its branches, or one without any."""
    if "branches" not in batch:
        return torch.ones_like(batch["tokens"])
    counts: torch.Tensor = (batch["branches"] > 0).sum(1).clamp(min=1)
    return counts


def flatten(batch: Mapping[str, Any], *, few_shapes: bool = False, shared: bool = True) -> dict[str, Any]:
    """The same examples without padding: shapes (1, N) in the place of (B, T).

    Documents are told apart by positions that begin anew at 0. A label is predicted from the token before it in the
    same document, so the first label of each is left out. The first token of a branch is predicted from the last one
    of the beginning that it goes on from, so a position may be kept for several branches.

    Args:
        batch: of the collator: ``input_ids``, ``labels``, ``position_ids`` (B, T); ``tokens`` (B,), the real lengths;
            ``branches`` (B, R) where examples have some, lengths of at least 1 filled up with 0.
        few_shapes: one more document, without a label, makes N `rounded`.
        shared: false repeats the beginning for each branch, for models that cannot share it.

    Returns:
        ``input_ids``, ``position_ids`` (1, N); ``keep`` (L,), the positions in 0..N-1 whose next token is trained;
        ``targets`` (L,), those tokens; ``owner`` (L,), whose they are: `sequences` numbered through the batch;
        ``segments``; with ``branches``, ``ends`` (S,), where each sequence's last token is. Then the labels lie in the
        order of their owners, each from left to right, as they do in `padded`; else in the order of the flat row.
    """
    if not shared:
        batch = separated(batch)
    ids, width = batch["input_ids"], batch["input_ids"].shape[1]
    begins, lengths, seen, owner = _documents(batch)
    starts = _starts(lengths)
    taken = torch.arange(int(starts[-1]), device=ids.device) + torch.repeat_interleave(begins - starts[:-1], lengths)
    places = torch.empty(ids.numel(), dtype=torch.long, device=ids.device)
    places[begins] = torch.arange(len(begins), device=ids.device)
    further = seen.nonzero().flatten()
    parents = places[begins[further] // width * width]
    before = torch.arange(-1, len(taken) - 1, device=ids.device)  # where each token is predicted
    before[starts[:-1]] = -1
    before[starts[further]] = starts[parents] + seen[further] - 1
    wanted = batch["labels"].flatten()[taken]
    kept = ((wanted != IGNORED) & (before >= 0)).nonzero().flatten()
    owners = torch.repeat_interleave(owner, lengths)[kept]
    if "branches" in batch:
        by_owner = owners.argsort(stable=True)
        kept, owners = kept[by_owner], owners[by_owner]
    flat, positions = ids.flatten()[taken], batch["position_ids"].flatten()[taken]
    more = rounded(len(taken)) - len(taken) if few_shapes else 0
    if more:
        flat, positions = torch.cat([flat, flat.new_zeros(more)]), torch.cat([positions, torch.arange(more).to(ids)])
        lengths, seen = (torch.cat([each, each.new_tensor([size])]) for each, size in ((lengths, more), (seen, 0)))
    ends = {}
    if "branches" in batch:
        ends["ends"] = torch.empty_like(starts[1:])
        ends["ends"][owner] = starts[1:] - 1
    prefixes = tuple(zip(parents.tolist(), seen[further].tolist(), strict=True))
    key_starts = _starts(lengths + seen).to(torch.int32) if prefixes else None
    return {
        "input_ids": flat[None],
        "position_ids": positions[None],
        "keep": before[kept],
        "targets": wanted[kept],
        "owner": owners,
        **ends,
        "segments": Segments(tuple(lengths.tolist()), _starts(lengths).to(torch.int32), more, prefixes, key_starts),
    }


def _starts(lengths: torch.Tensor) -> torch.Tensor:
    """(S + 1,) where each begins, and the end of the last."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _documents(batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each document, (S,), in the order of the flat row: where it begins in the flattened (B, T), how many tokens it
    has, how many of its example's beginning it sees, and which sequence's it is.
    """
    rows, width = batch["input_ids"].shape
    device = batch["input_ids"].device
    tokens = batch["tokens"].to(device).clamp(min=1)  # a filler has one token, which counts as none
    first = torch.arange(rows, device=device) * width
    begin = (torch.arange(width, device=device) < tokens[:, None]) & (batch["position_ids"] == 0)  # (B, T)
    seen, number = torch.zeros((2, rows * width), dtype=torch.long, device=device)
    counts = sequences(batch).to(device)
    owner = (counts.cumsum(0) - counts)[:, None].expand(rows, width).flatten()
    if "branches" in batch:
        branches = batch["branches"].to(device)  # (B, R)
        shared = tokens - branches.sum(1)
        example, branch = (branches[:, 1:] > 0).nonzero(as_tuple=True)
        at = first[example] + shared[example] + branches.cumsum(1)[example, branch]
        begin.view(-1)[at], seen[at], number[at] = True, shared[example], branch + 1
    begins = begin.flatten().nonzero().flatten()
    ends = torch.minimum(torch.cat([begins[1:], (first + tokens)[-1:]]), (first + tokens)[begins // width])
    found = begins, ends - begins, seen[begins], (owner + number)[begins]
    order = torch.sort(found[1], descending=True, stable=True).indices
    # whatever sees nothing of another stands before all that do
    sees = torch.where(found[2] > 0, found[2], width + 1)[order]
    order = order[torch.sort(sees, descending=True, stable=True).indices]
    begins, lengths, seen, owner = (each[order] for each in found)
    return begins, lengths, seen, owner


def separated(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with each sequence as an example of its own, its beginning repeated: (Q, U) in the place of (B, T).

    Q: `sequences` of the batch, in their order; U: the longest, rounded up to a multiple of 8. A batch without
    ``branches`` stays as it is.
    """
    if "branches" not in batch:
        return dict(batch)
    tokens, counts, device = batch["tokens"].clamp(min=1), sequences(batch), batch["tokens"].device
    branches = nn.functional.pad(batch["branches"], (0, 1))  # one more, so that an example without any has an empty one
    example = torch.repeat_interleave(torch.arange(len(tokens), device=device), counts)  # (Q,)
    branch = torch.arange(len(example), device=device) - (counts.cumsum(0) - counts)[example]
    shared, own = (tokens - branches.sum(1))[example, None], branches[example, branch, None]
    skipped = (branches.cumsum(1) - branches)[example, branch, None]
    width = -(-int((shared + own).max()) // 8) * 8
    column = torch.arange(width, device=device).expand(len(example), width)
    real = column < shared + own
    source = torch.where(real, column + skipped * (column >= shared), 0)
    names = ("input_ids", "labels", "position_ids")
    ids, labels, positions = (batch[name][example[:, None], source] for name in names)
    parts = {
        "input_ids": ids,
        "labels": labels.where(real, IGNORED),
        "position_ids": positions.where(real, column),
        "attention_mask": real.long(),
        "tokens": torch.where(batch["tokens"][example] > 0, (shared + own)[:, 0], 0),
        "branches": branches.new_zeros((len(example), 0)),
    }
    return {name: value for name, value in parts.items() if name in batch}


def padded(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch for models that run padded, each sequence a row: (Q, U) as in `separated`.

    Returns:
        ``input_ids``, ``position_ids`` and, where the batch has one, ``attention_mask`` (Q, U); `label_positions`; and
        ``ends`` as in `flatten`.
    """
    rows = separated(batch)
    names = ("input_ids", "position_ids", "attention_mask")
    found = {name: rows[name] for name in names if name in rows} | label_positions(rows["labels"])
    if "branches" in batch:
        width = rows["input_ids"].shape[1]
        sizes = rows["tokens"].clamp(min=1)
        found["ends"] = torch.arange(len(sizes), device=sizes.device) * width + sizes - 1
    return found


def label_positions(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """``keep``, ``targets`` and ``owner`` of a padded batch, as in `flatten`: an owner is a row.

    Positions are those of the flattened (B, T).
    """
    following = labels.roll(-1, dims=1)
    following[:, -1] = IGNORED
    keep = (following != IGNORED).flatten().nonzero().flatten()
    return {"keep": keep, "targets": following.flatten()[keep], "owner": keep // labels.shape[1]}
