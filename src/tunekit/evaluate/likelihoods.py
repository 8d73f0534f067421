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
from tunekit.evaluate.batches import batches
from tunekit.evaluate.contract import Likelihood, Scored
from tunekit.evaluate.decoding import left_padded
from tunekit.evaluate.logits import logits_at
from tunekit.evaluate.mode import plain_model

if TYPE_CHECKING:
    import torch

LOGIT_ROWS = 512  # positions whose logits are in float32 at one time: 0.3 GB for a vocabulary of 150,000
CONTEXT = 16  # a shorter context is not worth a pass of its own
POOL, WASTE = 8, 0.1
"""Contexts read at a time, in batches of texts, with at most this share of padding: what follows many of them can be
put in batches of one length."""
START, GROUPS = 64, 4  # so many tokens that so many contexts begin with are computed once for all of them

Done = Callable[[int, Scored], None]


@dataclass(frozen=True)
class Group:
    """Requests with the same context: the choices of one question."""

    context: tuple[int, ...]
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Cluster:
    """Groups whose contexts begin alike, with ``start`` tokens: the questions of one few-shot prompt."""

    start: int
    groups: tuple[Group, ...]


def plan(requests: Sequence[Likelihood], share: bool) -> tuple[list[int], list[Cluster]]:
    """Which requests are computed whole, and which by context."""
    if not share:
        return list(range(len(requests))), []
    found: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        found.setdefault(request.ids[: request.scored.index(True)], []).append(index)
    groups = [Group(context, tuple(indices)) for context, indices in sorted(found.items())]
    clusters: list[Cluster] = []
    others: list[Group] = []
    for start, run in _alike(groups):
        if len(run) >= GROUPS:
            clusters.append(Cluster(start, tuple(run)))
        else:
            others += [group for group in run if len(group.indices) > 1 and len(group.context) >= CONTEXT]
    clusters.append(Cluster(0, tuple(others)))
    taken = {index for cluster in clusters for group in cluster.groups for index in group.indices}
    return [n for n in range(len(requests)) if n not in taken], [cluster for cluster in clusters if cluster.groups]


def _alike(groups: Sequence[Group]) -> list[tuple[int, list[Group]]]:
    """Sorted groups in runs that begin alike, each with how many tokens: one less than its shortest context at most."""
    found: list[tuple[int, list[Group]]] = []
    for group in groups:
        if found:
            start, run = found[-1]
            common = _common(run[-1].context, group.context, start)
            if common >= max(START, start // 2 if len(run) > 1 else 0):
                run.append(group)
                found[-1] = (min(common, len(group.context) - 1), run)
                continue
        found.append((max(len(group.context) - 1, 0), [group]))
    return found


def _common(one: Sequence[int], other: Sequence[int], most: int) -> int:
    count = 0
    for a, b in zip(one[:most], other[:most]):  # the shorter ends it
        if a != b:
            break
        count += 1
    return count


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
        rows: contexts in a batch, and texts that follow them, at most.
        tokens: of the contexts of a batch, padding included.
        done: is told the request's index and its answer.
    """
    windowed = has_windows(model)
    for cluster in clusters:
        start = None
        if cluster.start:
            start = _read(model, [cluster.groups[0].context[: cluster.start]], None, 0, device)
        lengths = [len(group.context) - cluster.start for group in cluster.groups]
        # a batch has the start once a row in its cache
        most = max(rows, min(POOL * rows, tokens // max(len(group.context) for group in cluster.groups)))
        # a window counts places, not positions: padding after the start would take tokens out of it
        for batch in batches(lengths, rows=most, tokens=tokens, padding=not (windowed and cluster.start), waste=WASTE):
            groups = [cluster.groups[place] for place in batch]
            read = _read(model, [g.context[cluster.start :] for g in groups], start, cluster.start, device)
            chosen = [(index, place) for place, group in enumerate(groups) for index in group.indices]
            sizes = [len(requests[index].ids) - len(groups[place].context) for index, place in chosen]
            for part in batches(sizes, rows=rows):  # what follows is of other lengths than what stands before
                indices, owner = zip(*(chosen[at] for at in part), strict=True)
                answers = _targets(model, [requests[index] for index in indices], owner, read)
                for index, answer in zip(indices, answers, strict=True):
                    done(index, answer)


@dataclass(frozen=True)
class _Read:
    """Contexts that the model has read: G of them, S + W tokens wide."""

    cache: Any
    mask: torch.Tensor  # (G, S + W): which places are not padding
    logits: torch.Tensor  # (G, V) after the last token of each


def _read(
    model: Any, contexts: Sequence[Sequence[int]], start: _Read | None, begun: int, device: torch.device
) -> _Read:
    """Reads contexts, padded on the left, that go on from ``start``, ``begun`` tokens that were read before."""
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
    last = torch.full((count,), width - 1)
    logits = logits_at(model, ids.to(device), torch.arange(count), last, **options)
    return _Read(options["past_key_values"], mask, logits)


def _targets(model: Any, requests: Sequence[Likelihood], owner: Sequence[int], read: _Read) -> list[Scored]:
    """What follows the contexts, B texts of which ``owner`` says whose context they have."""
    import torch

    device = read.logits.device
    begun = read.mask.sum(dim=1)  # (G,) tokens of each context
    targets = [request.ids[int(begun[place]) :] for request, place in zip(requests, owner, strict=True)]
    of = torch.tensor(owner)  # (B,)
    parts = [(read.logits[of.to(device)], torch.arange(len(requests)), torch.tensor([ids[0] for ids in targets]))]
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
    return _sums(len(requests), parts)


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
            other = logits[part].argmax(dim=-1) != wanted
            sums.index_add_(0, rows[part], -losses.cpu().double())
            tokens.index_add_(0, rows[part], torch.ones_like(rows[part]))
            missed.index_add_(0, rows[part], other.cpu().long())
    return [
        Scored(value, number, not wrong)
        for value, number, wrong in zip(sums.tolist(), tokens.tolist(), missed.tolist(), strict=True)
    ]
