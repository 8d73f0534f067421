"""How numbers, times and curves are put into words; the same on every screen and in the report."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

NOT_FINITE = ("nan", "inf", "-inf")  # how floats without a JSON form are written
_BARS = "▁▂▃▄▅▆▇█"
_BROKEN = "×"  # stands for a value that is not finite


def json_ready(value: Any) -> Any:
    """A plain value that ``json.dumps(..., allow_nan=False)`` accepts.

    Floats that are not finite become the strings "nan", "inf" and "-inf"; lone surrogates become their escapes.

    Raises:
        TypeError: a value of a type that has no place in JSON.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {str(json_ready(str(key))): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        real = float(value)
        return real if math.isfinite(real) else str(real)
    raise TypeError(f"no JSON form for {type(value).__name__}: {value!r}")


def as_float(value: Any) -> float | None:
    """The number behind a JSON value, reading "nan" and "inf" back; None when it is not a number."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    return float(value) if value in NOT_FINITE else None


def number(value: float | None) -> str:
    """A number with four significant digits, or "nan", "inf", "–" for none: ``1.234``, ``0.0512``, ``2.0e-05``."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(float(value))
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3:
        return f"{value:.1e}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(size)))}f}"


def count(n: float | None) -> str:
    """A whole number with thousands separators, "–" for none."""
    return "–" if n is None else f"{n:,.0f}" if math.isfinite(n) else str(n)


def compact(n: float | None) -> str:
    """A large count in at most five characters: ``812``, ``12.4k``, ``1.54B``."""
    if n is None or not math.isfinite(n):
        return number(n)
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= size * 0.9995:
            shown = n / size
            return f"{shown:.{2 if shown < 9.995 else 1 if shown < 99.95 else 0}f}{letter}"
    return f"{n:.0f}"


def amount(n: int, noun: str) -> str:
    """A count with its noun in the right number: ``1 row``, ``4,000 rows``. ``noun`` is given in the plural."""
    return f"{count(n)} {noun[:-1] if n == 1 and noun.endswith('s') else noun}".rstrip()


def first_line(text: str, most: int) -> str:
    """The first line of a text with something on it, cut to ``most`` characters."""
    line = next((part.strip() for part in text.splitlines() if part.strip()), "")
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def duration(seconds: float | None) -> str:
    """A length of time for reading: ``0.4 s``, ``2 min 05 s``, ``3 h 10 min``, ``2 d 4 h``."""
    if seconds is None or not math.isfinite(seconds):
        return number(seconds)
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def clock(seconds: float) -> str:
    """A length of time for a running display, steady in width: ``0:07``, ``12:30``, ``1:02:05``."""
    if not math.isfinite(seconds):
        return number(seconds)
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def now_utc() -> str:
    """The present as ISO 8601 in UTC, to the second: ``2026-03-01T12:00:00Z``."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def when(iso: str | None) -> str:
    """An ISO time as ``2026-03-01 12:00`` (UTC), "–" for none."""
    return iso[:16].replace("T", " ") if iso else "–"


def sparkline(values: Iterable[float], width: int = 30) -> str:
    """The last ``width`` values as a line of small bars; one that is not finite is a cross."""
    recent = list(values)[-width:]
    finite = [v for v in recent if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    span = (high - low) or 1.0
    flat = high == low
    middle = _BARS[3]

    def bar(value: float) -> str:
        if not math.isfinite(value):
            return _BROKEN
        return middle if flat else _BARS[min(7, int((value - low) / span * 8))]

    return "".join(bar(value) for value in recent)


def is_share(higher_is_better: bool, values: Sequence[float]) -> bool:
    """Whether a metric reads best in per cent: more is better and all that is known of it lies between 0 and 1."""
    known = [value for value in values if not math.isnan(value)]
    return higher_is_better and bool(known) and all(0.0 <= value <= 1.0 for value in known)


def percent(value: float | None, *, signed: bool = False) -> str:
    """A share of one as ``58.4 %``, with a sign where it is a difference (then in points: ``+27.2``)."""
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{value * 100:+.1f}" if signed else f"{value * 100:.1f} %"
