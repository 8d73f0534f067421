"""Grouping rows of similar length, so that little is computed on padding."""

from __future__ import annotations

from collections.abc import Sequence


def batches(
    lengths: Sequence[int],
    *,
    rows: int,
    tokens: int | None = None,
    padding: bool = True,
    waste: float | None = None,
) -> list[list[int]]:
    """Indices of ``lengths``, longest first, in batches of at most ``rows`` rows and ``tokens`` padded tokens.

    The longest come first so that a machine too small for them says so at once. A row longer than ``tokens`` is a
    batch of its own. Without ``padding`` a batch holds rows of one length only; with ``waste``, at most this share of
    it is padding.
    """
    assert rows >= 1 and (tokens is None or tokens >= 1), (rows, tokens)
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        batch = found[-1] if found else []
        widest = lengths[batch[0]] if batch else 0
        over = tokens is not None and widest * (len(batch) + 1) > tokens
        room = widest * (len(batch) + 1)
        real = sum(lengths[place] for place in batch) + lengths[index]
        over = over or (waste is not None and room - real > waste * room)
        if not batch or len(batch) == rows or over or (not padding and lengths[index] != widest):
            found.append([index])
        else:
            batch.append(index)
    return found
