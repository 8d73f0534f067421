"""Log-likelihoods of texts under a model in memory; what texts have in common at their beginning is computed once.

Shapes: ``B`` rows of a batch, ``G`` groups in it, ``S`` tokens that all of them begin with, ``W`` further tokens of a
context, ``M`` tokens that follow a context, ``L`` positions whose logits are needed, ``V`` vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.evaluate.abilities import has_windows
from tunekit.evaluate.batches import cheap_batches
from tunekit.evaluate.contract import Likelihood, Scored
from tunekit.evaluate.decoding import left_padded
from tunekit.evaluate.logits import logits_at
from tunekit.evaluate.mode import plain_model
from tunekit.evaluate.sharing import Cluster

if TYPE_CHECKING:
    import torch

LOGIT_ROWS = 512  # positions whose logits are in float32 at one time: 0.3 GB for a vocabulary of 150,000
POOL = 8
"""Contexts, and texts that follow them, in a batch, in batches of whole texts: as many as have no more tokens."""
OVERHEAD = 64  # tokens that cost as much as a pass

Done = Callable[[int, Scored], None]


def whole(model: Any, requests: Sequence[Likelihood], device: torch.device) -> list[Scored]:
    """Each of B texts in one pass, padded on the right, where no token sees it; all but the last token is read."""
    import torch

    width = max(len(request.ids) for request in requests) - 1
    ids = torch.zeros(len(requests), width, dtype=torch.long)  # (B, T); what stands in the padding has no effect
    rows: list[int] = []
    columns: list[int] = []
    for row, request in enumerate(requests):
        assert len(request.scored) == len(request.ids) and not request.scored[0], (len(request.ids), request.scored[:1])
        ids[row, : len(request.ids) - 1] = torch.tensor(request.ids[:-1])
        at = [position - 1 for position, scored in enumerate(request.scored) if scored]
        columns += at
        rows += [row] * len(at)
    row_of, column_of = torch.tensor(rows), torch.tensor(columns)  # (L,), (L,)
    came = torch.tensor([requests[row].ids[column + 1] for row, column in zip(rows, columns, strict=True)])
    logits = logits_at(model, ids.to(device), row_of, column_of)  # (L, V)
    return _sums(len(requests), [(logits, row_of, came)])


def by_context(
    model: Any,
    requests: Sequence[Likelihood],
    clusters: Sequence[Cluster],
    device: torch.device,
    *,
    rows: int,
    tokens: int,
    done: Done,
) -> None:
    """Scores clusters of requests, telling ``done`` each answer.

    Args:
        model: one that `decoding.takes_cache`.
        requests: all of them.
        clusters: those to score, of `plan`.
        device: the model's.
        rows: whole texts in a batch, at most.
        tokens: of the contexts of a batch, padding included.
        done: is told the request's index and its answer.
    """
    windowed = has_windows(model)
    for cluster in clusters:
        start = None
        if cluster.start:
            start = _read(model, [cluster.groups[0].context[: cluster.start]], [()], None, 0, device)
        lengths = [len(group.shared) - cluster.start for group in cluster.groups]
        # a batch has the start once a row in its cache
        most = _rows(rows, tokens, max(len(group.shared) for group in cluster.groups))
        # a window counts places, not positions: padding after the start would take tokens out of it
        together = not (windowed and cluster.start)
        for batch in cheap_batches(lengths, rows=most, tokens=tokens, overhead=OVERHEAD, padding=together):
            groups = [cluster.groups[place] for place in batch]
            flags = [requests[g.indices[0]].scored[len(g.context) : len(g.shared)] for g in groups]
            read = _read(model, [g.shared[cluster.start :] for g in groups], flags, start, cluster.start, device)
            chosen = [(index, place) for place, group in enumerate(groups) for index in group.indices]
            sizes = [len(requests[index].ids) - len(groups[place].shared) for index, place in chosen]
            most_texts = _rows(rows, tokens, read.mask.shape[1] + max(sizes))
            # what follows is of other lengths than what stands before
            for part in cheap_batches(sizes, rows=most_texts, tokens=tokens, overhead=OVERHEAD):
                indices, owner = zip(*(chosen[at] for at in part), strict=True)
                answers = _targets(model, [requests[index] for index in indices], owner, read)
                for index, answer in zip(indices, answers, strict=True):
                    done(index, answer)


def _rows(rows: int, tokens: int, width: int) -> int:
    """Rows of a batch, each so many columns wide."""
    return max(rows, min(POOL * rows, tokens // width))


@dataclass(frozen=True)
class _Read:
    """Contexts that the model has read: G of them, S + W tokens wide."""

    cache: Any
    mask: torch.Tensor  # (G, S + W): which places are not padding
    logits: torch.Tensor  # (G, V) after the last token of each
    scored: list[Scored]  # the likelihood of what was scored in each


def _read(
    model: Any,
    contexts: Sequence[Sequence[int]],
    flags: Sequence[Sequence[bool]],
    start: _Read | None,
    begun: int,
    device: torch.device,
) -> _Read:
    """Reads contexts, padded on the left.

    Args:
        model: one that takes a cache.
        contexts: G of them, W tokens at most.
        flags: which of the last tokens of each are scored, for so many of them as there are flags.
        start: what they go on from.
        begun: tokens of ``start``.
        device: the model's.
    """
    import torch

    ids, own = left_padded(contexts, 0)
    count, width = ids.shape
    mask = torch.cat([torch.ones(count, begun, dtype=torch.long), own], dim=1)
    cache = _repeated(start.cache, torch.zeros(count, dtype=torch.long, device=device)) if start is not None else None
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, begun:]
    options = {
        "past_key_values": cache if cache is not None else _new_cache(model),
        "attention_mask": mask.to(device),
        "position_ids": positions.to(device),
        "use_cache": True,
    }
    at = [(row, width - len(own) + n) for row, own in enumerate(flags) for n, scored in enumerate(own) if scored]
    row_of, column_of = torch.tensor([*range(count), *(row for row, _ in at)]), torch.tensor([c - 1 for _, c in at])
    columns = torch.cat([torch.full((count,), width - 1), column_of.long()])
    logits = logits_at(model, ids.to(device), row_of, columns, **options)
    came = ids[row_of[count:], column_of.long() + 1]
    return _Read(
        options["past_key_values"], mask, logits[:count], _sums(count, [(logits[count:], row_of[count:], came)])
    )


def _targets(model: Any, requests: Sequence[Likelihood], owner: Sequence[int], read: _Read) -> list[Scored]:
    """What follows the contexts, B texts of which ``owner`` says whose context they have."""
    import torch

    device = read.logits.device
    begun = read.mask.sum(dim=1)  # (G,) tokens of each context
    targets = [request.ids[int(begun[place]) :] for request, place in zip(requests, owner, strict=True)]
    of = torch.tensor(owner)  # (B,)
    first = [row for row, (request, ids) in enumerate(zip(requests, targets)) if request.scored[-len(ids)]]
    first_of = torch.tensor(first, dtype=torch.long)
    parts = [(read.logits[of[first_of].to(device)], first_of, torch.tensor([targets[row][0] for row in first]))]
    width = max(map(len, targets)) - 1
    if width:
        ids = torch.zeros(len(requests), width, dtype=torch.long)  # (B, M); the last token of a target is not read
        rows: list[int] = []
        columns: list[int] = []
        for row, (request, target) in enumerate(zip(requests, targets, strict=True)):
            ids[row, : len(target) - 1] = torch.tensor(target[:-1], dtype=torch.long)
            flags = request.scored[len(request.ids) - len(target) + 1 :]
            at = [column for column, scored in enumerate(flags) if scored]
            columns += at
            rows += [row] * len(at)
        mask = torch.cat([read.mask[of], torch.ones(len(requests), width, dtype=torch.long)], dim=1)
        positions = begun[of][:, None] + torch.arange(width)  # what stands in the padding has no effect
        last = getattr(plain_model(model).config.get_text_config(), "max_position_embeddings", None)
        if rows:
            row_of, column_of = torch.tensor(rows), torch.tensor(columns)
            logits = logits_at(
                model,
                ids.to(device),
                row_of,
                column_of,
                past_key_values=_repeated(read.cache, of.to(device)),
                attention_mask=mask.to(device),
                position_ids=(positions if last is None else positions.clamp(max=last - 1)).to(device),
                use_cache=True,
            )
            labels = torch.tensor([targets[row][column + 1] for row, column in zip(rows, columns, strict=True)])
            parts.append((logits, row_of, labels))
    return [
        Scored(before.value + one.value, before.tokens + one.tokens, before.greedy and one.greedy)
        for before, one in zip((read.scored[place] for place in owner), _sums(len(requests), parts), strict=True)
    ]


def _new_cache(model: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=plain_model(model).config)


def _repeated(cache: Any, rows: torch.Tensor) -> Any:
    """A cache whose batch is made of ``rows`` of another one, which stays as it is."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    other.batch_select_indices(rows)
    return other


def _sums(count: int, parts: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> list[Scored]:
    """Log-likelihoods by row.

    Args:
        count: rows.
        parts: of logits (L, V), the rows that they belong to (L,) and the tokens that came (L,).
    """
    import torch
    from torch.nn.functional import cross_entropy

    sums = torch.zeros(count, dtype=torch.float64)
    tokens = torch.zeros(count, dtype=torch.long)
    missed = torch.zeros(count, dtype=torch.long)
    for logits, rows, labels in parts:
        for start in range(0, len(rows), LOGIT_ROWS):
            part = slice(start, start + LOGIT_ROWS)
            wanted = labels[part].to(logits.device)
            losses = cross_entropy(logits[part].float(), wanted, reduction="none")
            other = _is_other(logits[part], wanted)
            sums.index_add_(0, rows[part], -losses.cpu().double())
            tokens.index_add_(0, rows[part], torch.ones_like(rows[part]))
            missed.index_add_(0, rows[part], other.cpu().long())
    return [
        Scored(value, number, not wrong)
        for value, number, wrong in zip(sums.tolist(), tokens.tolist(), missed.tolist(), strict=True)
    ]


def _is_other(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Where another token than the wanted one is the likeliest, the first of equals: (L, V), (L,) -> (L,).

    Where one is likelier, its place need not be looked for, which takes five times as long as its value.
    """
    other = logits.gather(1, wanted[:, None])[:, 0] != logits.amax(dim=-1)
    if not bool(other.all()):
        same = (~other).nonzero()[:, 0]
        other[same] = logits[same].argmax(dim=-1) != wanted[same]
    return other
