"""The values that only some methods log: their names, how they are shown, and what a reader learns from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunekit.runs.wording import as_float, number, percent

HELD_OUT = "eval_"
"""What stands before the name of a value of the held-out rows."""
PART = "reward/"
"""What stands before the name of a part of the reward."""
MACHINE = (
    "learning_rate", "grad_norm", "tokens_per_second", "mfu", "trained_tokens_per_second", "padding_share",
    "trained_share", "memory_gb",
)  # fmt: skip
"""Values of the training itself, whatever the method."""
_EVERY_RUN = frozenset({"step", "total_steps", "epoch", "seconds", "seconds_left", "loss", "eval_loss", *MACHINE})
_MOST_LINES = 6  # colours of a chart


@dataclass(frozen=True)
class ValueChart:
    """Values of one unit, drawn together.

    Args:
        title: of the chart.
        about: what a reader learns from it.
        lines: the values by their name in metrics.jsonl, each with its name in the legend.
        show: a value in words.
        needs: the chart is that of runs which log this value too.
        of: what stands before a line's name outside of the chart.
    """

    title: str
    about: str
    lines: Mapping[str, str]
    show: Callable[[float], str] = number
    needs: str = ""
    of: str = ""


_REWARD = ValueChart(
    "Reward",
    "What an answer earns on average: all parts with their weights, and penalties. In training answers are sampled, "
    "held-out prompts get the likeliest answer: the two lines need not meet.",
    {"reward": "reward"},
)
_PARTS = ValueChart(
    "Reward by part",
    "Each part before it is weighted. One that rises while the others fall is what the model has learnt to please.",
    {},
)
_OTHERS = (
    ValueChart(
        "Spread of rewards",
        "Standard deviation of the rewards of one prompt's answers. At 0 they all earn the same, and a method that "
        "compares them learns nothing.",
        {"reward_spread": "spread of rewards"},
    ),
    ValueChart(
        "Reward accuracy",
        "Share of pairs whose chosen answer earns more of the method's own reward than the rejected one. Guessing gets "
        "50 %. It is not the preference accuracy of the evaluation, which asks the model itself.",
        {"reward_accuracy": "reward accuracy"},
        percent,
    ),
    ValueChart(
        "Reward margin",
        "How much more of the method's own reward the better answers earn than the worse ones. It grows in training; "
        "what counts is whether the held-out one grows too.",
        {"reward_margin": "reward margin"},
    ),
    ValueChart(
        "Worth of chosen and rejected answers",
        "What the method takes either answer to be worth. They should part; where both fall, the model only gives "
        "up the rejected one faster.",
        {"reward_chosen": "chosen", "reward_rejected": "rejected"},
        of="worth of ",
    ),
    ValueChart(
        "Worth of good and bad answers",
        "What the method takes answers judged good and bad to be worth. They should part, the good ones upwards.",
        {"reward_good": "good", "reward_bad": "bad"},
        of="worth of ",
    ),
    ValueChart(
        "Log-probability of the answers",
        "How likely the model is to write the whole answer, in nats: nearer 0 is likelier. If that of the chosen "
        "answers falls far, the model unlearns them too.",
        {"logps_chosen": "chosen", "logps_rejected": "rejected"},
        of="log-probability of ",
    ),
    ValueChart(
        "Distance from the reference (KL estimate)",
        "How far the model has moved, estimated from answers under a prompt that is not theirs, in nats an answer. An "
        "estimate below 0 counts as 0.",
        {"kl": "KL"},
        needs="reward_good",
    ),
    ValueChart(
        "Distance from the reference (KL)",
        "How far the answers have moved from those of the reference model, in nats an answer. A reward that rises "
        "while this runs away is often earned by a trick.",
        {"kl": "KL"},
    ),
    ValueChart(
        "Price of the distance (KL)",
        "What a nat of distance from the reference costs in reward.",
        {"kl_price": "price of KL"},
    ),
    ValueChart(
        "Movement within a window (approximate KL)",
        "How far the model has moved from the one that wrote the answers it learns from, in nats a token. Large "
        "values (above about 0.1) say that steps are too large.",
        {"approx_kl": "approximate KL"},
    ),
    ValueChart(
        "Clipped tokens",
        "Share of tokens that have moved as far as one window allows, and are held there. A few per cent are usual.",
        {"clip_share": "clipped tokens"},
        percent,
    ),
    ValueChart(
        "Answer length",
        "Tokens of an answer, on average. Look at the answers when it runs in one direction.",
        {"answer_tokens": "answer tokens"},
    ),
    ValueChart(
        "Answers that ended",
        "Share of answers that came to an end by themselves; the others were cut off at the greatest length.",
        {"ended_share": "ended answers"},
        percent,
    ),
    ValueChart(
        "Entropy",
        "How undecided the model is about its next token, in nats. Near 0 it always writes the same, and finds "
        "nothing new.",
        {"entropy": "entropy"},
    ),
    ValueChart(
        "Loss of the values",
        "How far the foretold return of an answer is from the one it got, squared.",
        {"value_loss": "value loss"},
    ),
    ValueChart(
        "Explained variance of the values",
        "How much of the returns' variation the values foretell: 1 is all of it, 0 no more than their mean would, "
        "below 0 less than that.",
        {"explained_variance": "explained variance"},
    ),
    ValueChart(
        "Clipped values",
        "Share of tokens whose value has moved as far as one window allows.",
        {"value_clip_share": "clipped values"},
        percent,
    ),
    ValueChart(
        "Token accuracy",
        "Share of trained tokens that the model would have chosen itself.",
        {"mean_token_accuracy": "token accuracy"},
        percent,
    ),
)
_KNOWN = (_REWARD, *_OTHERS)
_CHART_OF = {key: chart for chart in reversed(_KNOWN) for key in chart.lines}


def further(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the numbers that not every run logs, without what marks the held-out ones, in the order of meeting."""
    keys = {key: None for row in rows for key, value in row.items() if as_float(value) is not None}
    return list(dict.fromkeys(_plain(key) for key in keys if key not in _EVERY_RUN))


def _plain(key: str) -> str:
    """The name without ``eval_``, unless that would be a name which every run has."""
    plain = key.removeprefix(HELD_OUT)
    return key if not plain or plain in _EVERY_RUN else plain


def arranged(keys: Sequence[str]) -> list[ValueChart]:
    """The charts of `further` values, in the order of reading; one that is not known gets a chart of its own."""
    there = dict.fromkeys(keys)
    charts = [_only(_REWARD, there)]
    parts = [key for key in there if key.startswith(PART)]
    for start in range(0, len(parts), _MOST_LINES):
        lines = {key: value_name(key) for key in parts[start : start + _MOST_LINES]}
        title = f"{_PARTS.title}: {lines[parts[start]]}" if len(lines) == 1 else _PARTS.title
        charts.append(ValueChart(title, _PARTS.about, lines))
    taken = {key for chart in charts for key in chart.lines}
    for chart in _OTHERS:
        if not chart.needs or chart.needs in there:
            found = _only(chart, [key for key in there if key not in taken])
            charts.append(found)
            taken |= set(found.lines)
    rest = [key for key in there if key not in taken]
    unknown = [ValueChart(name[:1].upper() + name[1:], "", {key: name}) for key in rest for name in [value_name(key)]]
    return [chart for chart in (*charts, *unknown) if chart.lines]


def _only(chart: ValueChart, keys: Iterable[str]) -> ValueChart:
    """The chart with no other values than ``keys``."""
    lines = {key: name for key, name in chart.lines.items() if key in set(keys)}
    return replace(chart, lines=lines)


def value_name(key: str) -> str:
    """A value's name in words: ``reward accuracy``; of a part of the reward the part's own."""
    if key.startswith(PART):
        return key.removeprefix(PART)
    if key in _CHART_OF:
        return _CHART_OF[key].of + _CHART_OF[key].lines[key]
    return key.replace("_", " ").replace("/", " ")


def show_number(key: str, value: float) -> str:
    """The value of that name as its chart shows it: ``73.6 %``."""
    return _CHART_OF[key].show(value) if key in _CHART_OF else number(value)
