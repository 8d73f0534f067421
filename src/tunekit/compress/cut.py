"""The rows that models are compared on: evenly drawn, and cut to what the models can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunekit.core.errors import DataError
from tunekit.evaluate.contract import EvalItem


def cut_rows(
    rows: Sequence[Any], positions: int | None, *, most: int, length: int, new_tokens: int, least: int, fix: str
) -> list[EvalItem]:
    """Rows to compare models on.

    Args:
        rows: as evaluation takes them.
        positions: how many the model knows; None for no bound.
        most: so many rows.
        length: tokens of a row that are looked at.
        new_tokens: of an answer, for which a prompt leaves room.
        least: with fewer rows there is nothing to compare.
        fix: what gives more of them.

    Raises:
        DataError: too few rows have two tokens.
    """
    room = min(length, positions or length)
    long = [row for row in rows if len(row.input_ids) > 1]
    if len(long) < least:
        what = "there is one row" if long else "there is no row"
        raise DataError(f"{what} to measure the models on; {least} or more are needed", fix=fix)
    count = min(most, len(long))
    ask = max(1, room - new_tokens)
    return [
        EvalItem(
            tuple(row.input_ids[:room]),
            tuple(map(bool, row.trained[:room])),
            tuple((row.prompt_ids or row.input_ids[: max(1, len(row.input_ids) // 2)])[-ask:]),
            row.prompt_text,
            row.reference,
            row.where,
        )
        for row in (long[at * len(long) // count] for at in range(count))
    ]
