"""The last of the values that only some methods log, as a table for `tunekit runs show`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from tunekit.runs.summary import slim_table
from tunekit.runs.values import HELD_OUT, PART, arranged, further, show_number, value_name
from tunekit.runs.wording import as_float, count

_Last = tuple[float, Any]  # a value and its step


def last_values(metrics: Sequence[Mapping[str, Any]]) -> Table | None:
    """Each value's last number in training and on the held-out rows; None for a run without such values.

    A number that is older than the last of its column says its step.
    """
    keys = [key for chart in arranged(further(metrics)) for key in chart.lines]
    if not keys:
        return None
    columns = [[_last(metrics, f"{prefix}{key}") for key in keys] for prefix in ("", HELD_OUT)]
    table = slim_table()
    table.add_column("last values", overflow="fold")
    for name, column in zip(("training", "held-out"), columns, strict=True):
        newest = _newest(column)
        table.add_column(f"{name}, step {count(newest)}" if newest is not None else name, justify="right")
    for key, *found in zip(keys, *columns, strict=True):
        name = f"reward: {value_name(key)}" if key.startswith(PART) else value_name(key)
        table.add_row(Text(name), *(_cell(key, last, _newest(column)) for last, column in zip(found, columns)))
    return table


def _last(metrics: Sequence[Mapping[str, Any]], key: str) -> _Last | None:
    for row in reversed(metrics):
        value = as_float(row.get(key))
        if value is not None:
            return value, row.get("step")
    return None


def _newest(column: Sequence[_Last | None]) -> float | None:
    return max((step for last in column if last and (step := as_float(last[1])) is not None), default=None)


def _cell(key: str, last: _Last | None, newest: float | None) -> Text:
    if last is None:
        return Text("–", style="dim")
    value, step = last
    old = f" (step {count(step)})" if as_float(step) is not None and step != newest else ""
    return Text.assemble(show_number(key, value), (old, "dim"))
