"""Which texts begin alike, so that what they have in common is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunekit.evaluate.contract import Likelihood

CONTEXT = 8  # fewer tokens that choices have in common are not worth a pass of their own
START, GROUPS = 64, 4  # so many tokens that so many contexts begin with are computed once for all of them


@dataclass(frozen=True)
class Group:
    """Requests with the same context: the choices of one question.

    Args:
        context: tokens before the first one that is scored.
        indices: of the requests.
        more: tokens that all of them have after the context, of which the same ones are scored; one less than the
            shortest has at most.
    """

    context: tuple[int, ...]
    indices: tuple[int, ...]
    more: tuple[int, ...] = ()

    @property
    def shared(self) -> tuple[int, ...]:
        """All tokens that the requests begin with."""
        return self.context + self.more


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
    groups = [_group(context, indices, requests) for context, indices in sorted(found.items())]
    clusters: list[Cluster] = []
    others: list[Group] = []
    for start, run in _alike(groups):
        if len(run) >= GROUPS:
            clusters.append(Cluster(start, tuple(run)))
        else:
            others += [group for group in run if len(group.indices) > 1 and len(group.shared) >= CONTEXT]
    clusters.append(Cluster(0, tuple(others)))
    taken = {index for cluster in clusters for group in cluster.groups for index in group.indices}
    return [n for n in range(len(requests)) if n not in taken], [cluster for cluster in clusters if cluster.groups]


def _group(context: tuple[int, ...], indices: Sequence[int], requests: Sequence[Likelihood]) -> Group:
    start, count = len(context), 0
    for column in zip(*(list(zip(requests[n].ids, requests[n].scored))[start:-1] for n in indices)):
        if len(set(column)) > 1:
            break
        count += 1
    return Group(context, tuple(indices), requests[indices[0]].ids[start : start + count])


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
