"""Figures with their intervals, as the table, the report and the card show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.runs.wording import number, percent


def interval(found: Sequence[float]) -> tuple[str, str]:
    """A value, and its bounds: ``12.3`` and ``11.9 to 12.8``."""
    value, low, high = found
    return number(value), f"{number(low)} to {number(high)}"


def rise(found: Sequence[float]) -> tuple[str, str]:
    """A change by a share, and its bounds: ``+1.2%`` and ``+0.8% to +1.6%``."""
    value, low, high = found
    return f"{value:+.1%}", f"{low:+.1%} to {high:+.1%}"


def divergence(record: Mapping[str, Any]) -> tuple[str, str]:
    """The mean KL of a record, and its bounds, where it has any: an older one has none."""
    low, high = record.get("mean_kl_interval") or (None, None)
    return number(record["mean_kl"]), f"{number(low)} to {number(high)}" if low is not None else ""


def agreement(record: Mapping[str, Any]) -> tuple[str, str]:
    """The share of positions whose likeliest token is the same, and its bounds, where it has any."""
    low, high = record.get("top1_agreement_interval") or (None, None)
    return percent(record["top1_agreement"]), f"{100 * low:.1f} to {percent(high)}" if low is not None else ""


def below(words: tuple[str, str]) -> str:
    """Both in two lines, or the first alone where there is no second."""
    return "\n".join(filter(None, words))


def beside(words: tuple[str, str]) -> str:
    """Both in a line, the second in brackets."""
    return f"{words[0]} ({words[1]})" if words[1] else words[0]
