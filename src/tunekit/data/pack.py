"""Packing: several examples in one row of fixed length, by best-fit decreasing; deterministic, no example is split."""

from __future__ import annotations

from collections.abc import Sequence


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Assigns examples to rows of ``capacity`` tokens.

    Longest first, each into the fullest row that still has room (best-fit decreasing: at most 11/9 of the optimal
    number of rows + 6/9, Johnson 1974). Ties keep the input order, so the result depends on the lengths alone.

    Args:
        lengths: tokens of each example, each at most ``capacity``.
        capacity: tokens a row.

    Returns:
        For each row the indices of its examples, in the order they were placed.
    """
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    mask = 0  # bit r is set when some row has exactly r tokens of room: finding the best row is one shift
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        assert 0 < length <= capacity, (index, length, capacity)
        roomy = mask >> length
        if roomy:
            room = length + (roomy & -roomy).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                mask &= ~(1 << room)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        left = room - length
        if left:
            by_room[left].append(row)
            mask |= 1 << left
    return rows
