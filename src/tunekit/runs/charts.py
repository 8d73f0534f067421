"""Charts for the report. The lines are SVG stretched to the page's width; their labels are text of constant size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from tunekit.runs.markup import Html, data_island, tag
from tunekit.runs.wording import amount, compact, count, number

Point = tuple[float, float]
_WIDTH, _HEIGHT = 1000.0, 400.0  # SVG units of the plot, whatever its size on the page
_BAND = 40.0  # SVG units, and pixels, of a row of intervals
_MOST_POINTS = 1500  # of a line; longer ones are thinned to the extremes of equal stretches


@dataclass(frozen=True)
class Series:
    """A line of a chart: ``kind`` is its look, "train", "faint", "plain", "part-0" ..., or with dots "eval..."."""

    name: str
    kind: str
    points: Sequence[Point]


def smoothed(points: Sequence[Point], span: int) -> list[Point]:
    """The mean over ``span`` neighbours on either side, fewer towards an end, so that the line does not lag.

    Values that are not finite stay as they are, and nothing is averaged across them.
    """
    line: list[Point] = []
    for finite, group in groupby(points, key=lambda point: math.isfinite(point[1])):
        part = list(group)
        sums = list(accumulate((y for _, y in part), initial=0.0))
        for i, (x, y) in enumerate(part):
            reach = min(span, i, len(part) - 1 - i)
            line.append((x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1) if finite else y))
    return line


def thinned(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """At most ``most`` points: of every stretch the lowest, the highest and whatever is not finite, in order."""
    if len(points) <= most:
        return list(points)
    stretch = math.ceil(len(points) / (most // 2))
    kept: list[Point] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        finite = [p for p in part if math.isfinite(p[1])]
        ends = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])} if finite else set()
        kept += [p for p in part if p in ends or not math.isfinite(p[1])]
    return kept


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from at or below ``low`` to at or above ``high``, about ``about`` of them."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # equal but for the rounding of a mean
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    raw = (high - low) / max(1, about - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    width = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / width + 1e-9), math.ceil(high / width - 1e-9)
    return [round(i * width, 12 - math.floor(math.log10(width))) for i in range(first, last + 1)]


def tick_words(marks: Sequence[float]) -> list[str]:
    """The labels of an axis, all with the same number of decimals: ``0.5``, ``1.0``; ``1e-04``; ``20k``."""
    largest = max(abs(mark) for mark in marks)
    if largest >= 10_000:
        return [compact(mark).replace(".00", "").replace(".0k", "k") for mark in marks]
    if largest < 0.01:
        return ["0" if mark == 0 else f"{mark:.1e}".replace(".0e", "e") for mark in marks]
    exact = (d for d in range(6) if all(math.isclose(round(mark, d), mark, abs_tol=1e-9) for mark in marks))
    decimals = next(exact, 6)
    return [f"{mark:,.{decimals}f}" for mark in marks]


def line_chart(
    title: str, series: Sequence[Series], *, show: Callable[[float], str] = number, tall: bool = False
) -> Html:
    """A figure with axes, grid, legend and a read-out that follows the pointer; x is the training step.

    Values that are not finite break the line; a red rule marks their step and a note counts them.
    """
    drawn = [Series(s.name, s.kind, thinned(s.points)) for s in series if s.points]
    finite = [y for s in drawn for _, y in s.points if math.isfinite(y)]
    steps = [x for s in drawn for x, _ in s.points]
    if not finite:
        return tag("figure", tag("figcaption", title), tag("p", "no finite values", cls="muted"), cls="chart")
    low, high = min(finite), max(finite)
    y_ticks = ticks(0.0 if 0 < low < 0.4 * high else low, high, 6 if tall else 4)
    x_ticks = [
        x for x in ticks(min(steps), max(steps), 6 if tall else 4) if min(steps) <= x <= max(steps) and x == int(x)
    ]
    x_range, y_range = (min(steps), max(max(steps), min(steps) + 1)), (y_ticks[0], y_ticks[-1])
    svg = tag(
        "svg",
        [_rule(0, _at(y, y_range, _HEIGHT, True), _WIDTH, None) for y in y_ticks],
        [_rule(_at(x, x_range, _WIDTH), 0, None, _HEIGHT) for x in x_ticks],
        [_line(s, x_range, y_range) for s in drawn],
        viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{title} by step",
    )
    data = {
        "x": x_range,
        "y": y_range,
        "series": [
            {"name": s.name, "kind": s.kind, "points": [[x, y, show(y)] for x, y in s.points]} for s in drawn
        ],
    }  # fmt: skip
    overlay = [tag("div", cls="cursor", hidden=True), tag("div", cls="readout", hidden=True)]
    frame = tag(
        "div",
        _axis("y-axis", "bottom", y_ticks, y_range),
        tag("div", svg, overlay, cls="plot", tabindex="0"),
        _axis("x-axis", "left", x_ticks, x_range),
        cls="frame",
    )
    caption = tag("figcaption", tag("span", title, cls="chart-title"), _legend(drawn))
    return tag(
        "figure", caption, frame, _notes(series, drawn), data_island(data), cls="chart tall" if tall else "chart"
    )


def intervals(rows: Sequence[tuple[str, float, float, float]], show: Callable[[float], str]) -> Html:
    """Values with their confidence intervals on one axis; a row is (look: "base" or "tuned", value, low, high)."""
    finite = [n for _, *numbers in rows for n in numbers if math.isfinite(n)]
    if not finite:
        return Html("")
    pad = (max(finite) - min(finite) or abs(finite[0]) or 1.0) * 0.12
    span = (min(finite) - pad, max(finite) + pad)
    lines = []
    for look, value, low, high in rows:
        if not all(math.isfinite(n) for n in (value, low, high)):
            continue
        left, right = 100 * _share(low, span), 100 * (1 - _share(high, span))
        lines.append(
            tag(
                "div",
                tag("i", cls="whisker", style=f"left:{left:.2f}%;right:{right:.2f}%"),
                tag("i", cls="dot", style=f"left:{100 * _share(value, span):.2f}%"),
                cls=f"interval {look}",
                title=f"{look}: {show(value)}, interval {show(low)} to {show(high)}",
            )
        )
    return tag("div", lines, cls="intervals", role="img", aria_label="intervals of base and tuned model")


def interval_chart(
    title: str,
    groups: Sequence[tuple[str, Sequence[tuple[str, float, float, float]]]],
    show: Callable[[float], str],
    *,
    shares: bool = False,
) -> Html:
    """A figure of values with their intervals on one axis; a group is (label, rows), its rows are those of `intervals`.

    A bound that is not finite leaves its value without a whisker, a value that is not finite is left out. The axis of
    ``shares`` is labelled in per cent.
    """
    known = [numbers for _, rows in groups for _, *numbers in rows if math.isfinite(numbers[0])]
    finite = [n for numbers in known for n in numbers if math.isfinite(n)]
    if not finite:
        return tag("figure", tag("figcaption", title), tag("p", "no finite values", cls="muted"), cls="chart")
    marks = ticks(min(finite), max(finite), 6)
    span, height = (marks[0], marks[-1]), _BAND * len(groups)
    words = [f"{mark} %" for mark in tick_words([100 * mark for mark in marks])] if shares else tick_words(marks)
    drawn: list[Html] = []
    for at, (label, rows) in enumerate(groups):
        for place, (look, value, low, high) in enumerate(rows):
            y = round(_BAND * (at + (place + 1) / (len(rows) + 1)), 2)
            drawn += _whisker(f"{label}, {look}", look, y, (value, low, high), span, show)
    svg = tag(
        "svg",
        [_rule(_at(mark, span, _WIDTH), 0, None, height) for mark in marks],
        drawn,
        viewBox=f"0 0 {_WIDTH:g} {height:g}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{title}: intervals by task and model",
    )
    looks = dict.fromkeys(look for _, rows in groups for look, *_ in rows)
    legend = tag("span", [tag("span", tag("i", cls=f"key line-{look}"), look) for look in looks], cls="legend")
    frame = tag(
        "div",
        tag("div", [tag("span", label, title=label) for label, _ in groups], cls="bands"),
        tag("div", svg, cls="plot"),
        _axis("x-axis", "left", marks, span, words),
        cls="frame",
        style=f"height:{height + 28:g}px",
    )
    return tag("figure", tag("figcaption", tag("span", title, cls="chart-title"), legend), frame, cls="chart bars")


def _whisker(
    label: str,
    look: str,
    y: float,
    numbers: tuple[float, float, float],
    span: tuple[float, float],
    show: Callable[[float], str],
) -> list[Html]:
    """A dot and the line of its interval at the height ``y``; nothing for a value that is not finite."""
    value, low, high = numbers
    if not math.isfinite(value):
        return []
    known = math.isfinite(low) and math.isfinite(high)
    words = f"{label}: {show(value)}" + (f", interval {show(low)} to {show(high)}" if known else "")
    left, right = (_at(n, span, _WIDTH) for n in ((low, high) if known else (value, value)))
    line = tag("path", d=f"M{left:g} {y:g}H{right:g}", cls=f"whisker line-{look}")
    dot = tag("path", tag("title", words), d=f"M{_at(value, span, _WIDTH):g} {y:g}h0", cls=f"dot line-{look}")
    return [line, dot] if known else [dot]


def stacked_bar(parts: Sequence[tuple[str, str, float]], shown: Callable[[float], str] = count) -> Html:
    """One bar of shares with its legend; a part is (look, name, size). Empty parts are left out."""
    total = sum(size for _, _, size in parts) or 1.0
    present = [(look, name, size) for look, name, size in parts if size > 0]
    bar = [
        tag("i", cls=f"part {look}", style=f"flex-grow:{size / total:.6f}", title=f"{name}: {shown(size)}")
        for look, name, size in present
    ]
    keys = [
        tag(
            "li",
            tag("i", cls=f"key {look}"),
            f"{name} ",
            tag("b", shown(size)),
            tag("span", f" {100 * size / total:.1f} %", cls="muted"),
        )
        for look, name, size in present
    ]
    return tag("div", tag("div", bar, cls="stack"), tag("ul", keys, cls="legend"), cls="stacked")


def _share(value: float, span: tuple[float, float]) -> float:
    return (value - span[0]) / ((span[1] - span[0]) or 1.0)


def _at(value: float, span: tuple[float, float], size: float, flipped: bool = False) -> float:
    share = _share(value, span)
    return round((1 - share if flipped else share) * size, 2)


def _rule(x: float, y: float, across: float | None, down: float | None = None, cls: str = "grid") -> Html:
    return tag("path", d=f"M{x:g} {y:g}" + (f"h{across:g}" if across is not None else f"v{down:g}"), cls=cls)


def _axis(
    cls: str, side: str, marks: Sequence[float], span: tuple[float, float], shown: Sequence[str] | None = None
) -> Html:
    """The labels of one axis, placed in per cent of it; those at the ends do not stick out."""
    labels = []
    for mark, words in zip(marks, shown or (tick_words(marks) if marks else [])):
        share = _share(mark, span)
        edge = " first" if share < 0.04 else " last" if share > 0.96 else ""
        labels.append(tag("span", words, cls=f"tick{edge}", style=f"{side}:{100 * share:.2f}%"))
    return tag("div", labels, cls=cls)


def _legend(series: Sequence[Series]) -> Html | None:
    if len(series) < 2:
        return None
    return tag("span", [tag("span", tag("i", cls=f"key line-{s.kind}"), s.name) for s in series], cls="legend")


def _line(series: Series, x_range: tuple[float, float], y_range: tuple[float, float]) -> Html:
    """A polyline for every unbroken stretch, a red rule where a value is not finite, dots for evaluations."""
    stretches: list[list[str]] = [[]]
    rules: list[Html] = []
    for x, y in series.points:
        if math.isfinite(y):
            stretches[-1].append(f"{_at(x, x_range, _WIDTH):g},{_at(y, y_range, _HEIGHT, True):g}")
        else:
            stretches.append([])
            rules.append(_rule(_at(x, x_range, _WIDTH), 0, None, _HEIGHT, "broken"))
    lines = [tag("polyline", points=" ".join(points), cls=f"line-{series.kind}") for points in stretches if points]
    alone = [points[0] for points in stretches if len(points) == 1]
    dotted = [point for points in stretches for point in points] if series.kind.startswith("eval") else alone
    # A line of no length with round ends is a dot that stays round however the plot is stretched.
    dots = [tag("path", d=f"M{point.replace(',', ' ')}h0", cls=f"dot line-{series.kind}") for point in dotted]
    return tag("g", rules, lines, dots)


def _notes(whole: Sequence[Series], drawn: Sequence[Series]) -> Html | None:
    broken = sorted({x for series in whole for x, y in series.points if not math.isfinite(y)})
    longest = max(len(series.points) for series in whole)
    notes = []
    if broken:
        notes.append(f"Not finite at {amount(len(broken), 'steps')}, first at step {count(broken[0])}.")
    if longest > max(len(series.points) for series in drawn):
        notes.append(f"{count(longest)} points, drawn as the lowest and highest of equal stretches.")
    return tag("p", " ".join(notes), cls="muted small") if notes else None
