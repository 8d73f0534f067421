"""The report's charts of the training: losses, what the method measures, and how the machine was used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunekit.runs.charts import Point, Series, line_chart, smoothed
from tunekit.runs.markup import Html, tag
from tunekit.runs.values import HELD_OUT, MACHINE, PART, ValueChart, arranged, further
from tunekit.runs.wording import amount, as_float, compact, number, percent

_SMOOTH_FROM = 40  # points from which a smoothed line is drawn over the values
_MOST_CHARTS = 60  # of values that belong to a method; a page with more of them is no help
_ALWAYS = ("learning_rate", "grad_norm", "tokens_per_second")
_MACHINE: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "learning_rate": ("Learning rate", number),
    "grad_norm": ("Gradient norm", number),
    "tokens_per_second": ("Tokens per second", compact),
    "mfu": ("MFU (model FLOPs utilization)", percent),
    "trained_tokens_per_second": ("Trained tokens per second", compact),
    "padding_share": ("Padding", percent),
    "trained_share": ("Trained tokens among all", percent),
    "memory_gb": ("Memory in GB", number),
}
_LOOKS = {"chosen": "good", "rejected": "bad", "good": "good", "bad": "bad"}


def training_section(metrics: Sequence[Mapping[str, Any]]) -> Html | None:
    """Every number of metrics.jsonl as a chart, held-out values beside those of training."""
    keys = further(metrics)
    losses, evals = _points(metrics, "loss"), _points(metrics, f"{HELD_OUT}loss")
    if not losses and not evals and not keys:
        return None
    charts = arranged(keys)
    own = [_value_chart(chart, metrics) for chart in charts[:_MOST_CHARTS]]
    more = len(charts) - len(own)
    return tag(
        "div",
        line_chart("Loss", [*_with_smoothed("training loss", losses), Series("eval loss", "eval", evals)], tall=True),
        _about_losses(keys),
        [tag("h3", "What the method measures", cls="part"), tag("div", own, cls="small-charts")] if own else None,
        tag("p", f"{amount(more, 'further values')}: see metrics.jsonl.", cls="muted small") if more > 0 else None,
        tag("h3", "Steps and speed", cls="part") if own else None,
        tag("div", _machine(metrics), cls="small-charts"),
    )


def _about_losses(keys: Sequence[str]) -> Html | None:
    """A warning for those who read the loss of a policy as that of other methods."""
    if "reward" not in keys:
        return None
    words = (
        "The loss of a policy says little by itself: each window of steps has answers of its own. The eval loss here "
        "is minus the held-out reward. Read the reward below, and the answers."
    )
    return tag("p", words, cls="about")


def _machine(metrics: Sequence[Mapping[str, Any]]) -> list[Html]:
    assert set(_MACHINE) == set(MACHINE), MACHINE
    charts = []
    for key, (title, show) in _MACHINE.items():
        points = _points(metrics, key)
        if key in _ALWAYS or len(points) > 1:  # a short run has no course of these to show
            charts.append(line_chart(title, [Series(title.lower(), "plain", points)], show=show))
    return charts


def _value_chart(chart: ValueChart, metrics: Sequence[Mapping[str, Any]]) -> Html:
    """A chart with its words: one value against its held-out twin, or several in colours of their own."""
    series: list[Series] = []
    for at, (key, name) in enumerate(chart.lines.items()):
        points, held_out = _points(metrics, key), _points(metrics, f"{HELD_OUT}{key}")
        if len(chart.lines) == 1:
            series += _with_smoothed("training", points)
            series.append(Series("held-out", "eval", held_out))
        else:
            look = f"part-{at}" if key.startswith(PART) else _LOOKS.get(name, f"part-{at}")
            series += [Series(name, look, points), Series(f"{name}, held-out", f"eval-{look}", held_out)]
    figure = line_chart(chart.title, series, show=chart.show)
    return tag("div", figure, tag("p", chart.about, cls="about") if chart.about else None)


def _with_smoothed(name: str, points: Sequence[Point]) -> list[Series]:
    """The line, and when it has many points a faint one below its mean course."""
    if len(points) < _SMOOTH_FROM:
        return [Series(name, "train", points)]
    return [Series(name, "faint", points), Series("smoothed", "train", smoothed(points, len(points) // 50 + 2))]


def _points(metrics: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    return [(row["step"], n) for row in metrics if "step" in row and (n := as_float(row.get(key))) is not None]
