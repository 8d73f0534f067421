"""Grouping rows of similar length, so that little is computed on padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tunekit.core.errors import DataError


def batches(lengths: Sequence[int], *, rows: int, tokens: int | None = None) -> list[list[int]]:
    """Indices of ``lengths``, longest first, in batches of at most ``rows`` rows and ``tokens`` padded tokens.

    The longest come first so that a machine too small for them says so at once. A row longer than ``tokens`` is a
    batch of its own.
    """
    assert rows >= 1 and (tokens is None or tokens >= 1), (rows, tokens)
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        batch = found[-1] if found else []
        widest = lengths[batch[0]] if batch else 0
        over = tokens is not None and widest * (len(batch) + 1) > tokens
        if not batch or len(batch) == rows or over:
            found.append([index])
        else:
            batch.append(index)
    return found


def cheap_batches(
    lengths: Sequence[int], *, rows: int, tokens: int, overhead: int, padding: bool = True
) -> list[list[int]]:
    """As `batches`, with the least padding that is worth its passes: where a batch ends is found for all at once.

    Args:
        lengths: in tokens.
        rows: of a batch, at most.
        tokens: of a batch, padding included, at most; a longer row is a batch of its own.
        overhead: so many tokens cost as much as one pass more.
        padding: whether rows of several lengths may share a batch.
    """
    assert rows >= 1 and tokens >= 1, (rows, tokens)
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    least, begins = [0.0], [0]  # by how many of the rows: what they cost, and where their last batch begins
    for end in range(1, len(order) + 1):
        costs = []
        for begin in range(end - 1, max(end - rows, 0) - 1, -1):
            widest = lengths[order[begin]]
            whole = widest * (end - begin)
            if begin < end - 1 and (whole > tokens or not (padding or widest == lengths[order[end - 1]])):
                break
            costs.append((least[begin] + overhead + whole, begin))
        cost, begin = min(costs)
        least.append(cost)
        begins.append(begin)
    found, end = list[list[int]](), len(order)
    while end:
        found.append(order[begins[end] : end])
        end = begins[end]
    return found[::-1]


def check_lengths(lengths: Iterable[int], positions: int | None) -> None:
    """Refuses texts that are longer than what a model reads.

    Args:
        lengths: in tokens.
        positions: of the model; None when it has no bound.

    Raises:
        DataError: the longest of them.
    """
    longest = max(lengths, default=0)
    if positions is not None and longest > positions:
        raise DataError(
            f"a text of {longest} tokens is longer than the model's {positions} positions",
            fix="shorten the prompts, or leave such rows out",
        )
