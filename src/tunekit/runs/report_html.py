"""The report's page: header, headline and evaluation; the other sections have modules of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunekit.runs.baseline import base_line
from tunekit.runs.charts import intervals
from tunekit.runs.markup import Html, document, tag
from tunekit.runs.record import Record, TaskPart, TrainingPart
from tunekit.runs.report_rollouts import rollouts_section
from tunekit.runs.report_script import SCRIPT
from tunekit.runs.report_sections import data_section, environment_section, recipe_section, samples_section
from tunekit.runs.report_style import STYLE
from tunekit.runs.report_training import training_section
from tunekit.runs.rollouts import SampledAnswer
from tunekit.runs.verdict import headline, metric_name, show_difference, show_estimate, show_p, show_value
from tunekit.runs.wording import compact, count, duration, number, percent, when

_STATUS_TONE = {"done": "good", "failed": "bad"}
_VERDICT_TONE = {"better": "good", "worse": "bad"}


def page(
    name: str,
    record: Record,
    metrics: Sequence[dict[str, Any]],
    recipe: str,
    plan: str,
    answers: tuple[Sequence[SampledAnswer], int] = ((), 0),
) -> str:
    """The whole report as HTML.

    Args:
        name: the run's name.
        record: its record.
        metrics: the lines of metrics.jsonl.
        recipe: the recipe as given, YAML text; empty when there is none.
        plan: the resolved plan as YAML text; empty when there is none.
        answers: some of the answers that a policy gave while it was trained, and how many there are.
    """
    sections = [
        ("evaluation", "Evaluation", _evaluation(record)),
        ("training", "Training", training_section(metrics)),
        ("answers", "Answers over the run", rollouts_section(*answers)),
        ("data", "Data", data_section(record.data)),
        ("samples", "Samples", samples_section(record.evaluation)),
        ("recipe", "Recipe", recipe_section(recipe, plan)),
        ("environment", "Environment", environment_section(record)),
    ]
    present = [(key, title, content) for key, title, content in sections if content is not None]
    return document(
        f"{name} · tunekit",
        STYLE,
        SCRIPT,
        _header(name, record, [(key, title) for key, title, _ in present]),
        tag(
            "main",
            _headline(record),
            [tag("section", tag("h2", title), content, id=key) for key, title, content in present],
            tag("footer", f"Written by tunekit {record.tunekit} from the run's own record. Times are UTC."),
        ),
    )


def _header(name: str, record: Record, sections: Sequence[tuple[str, str]]) -> Html:
    model = record.model
    facts = [
        record.method,
        model.name if model else "",
        f"revision {model.revision[:10]}" if model and model.revision else "",
    ]
    status = tag("span", record.status, cls=f"pill {_STATUS_TONE.get(record.status, '')}".strip())
    return tag(
        "header",
        tag("p", "tunekit run", cls="brand"),
        tag("div", tag("h1", name), status, cls="titles"),
        tag("p", " · ".join(fact for fact in (*facts, when(record.created)) if fact), cls="facts"),
        tag("nav", [tag("a", title, href=f"#{key}") for key, title in sections], aria_label="sections"),
        cls="top",
    )


def _headline(record: Record) -> Html:
    words = headline(record)
    tiles = [
        tag("div", tag("dt", label), tag("dd", value, tag("small", more) if more else None))
        for label, value, more in _tiles(record)
    ]
    return tag(
        "section",
        tag("p", words.title, cls="verdict"),
        [tag("p", detail) for detail in words.details],
        tag("dl", tiles, cls="tiles") if tiles else None,
        cls=f"headline {words.tone}",
        id="verdict",
    )


def _tiles(record: Record) -> list[tuple[str, str, str]]:
    """(label, value, small print) of the figures at the top."""
    tiles = []
    train = record.data.splits.get("train") if record.data else None
    if train:
        tiles.append(("Rows trained on", count(train.kept + train.truncated), f"of {count(train.rows)} read"))
    if record.training:
        tiles += _training_tiles(record.training)
    if record.model:
        share = 100 * record.model.trainable / max(1, record.model.parameters)
        tiles.append(
            ("Trainable", compact(record.model.trainable), f"{share:.3g} % of {compact(record.model.parameters)}")
        )
    if record.seconds:
        training = record.seconds.get("training")
        most = f"training {duration(training)}".replace(" ", "\xa0") if training is not None else ""
        tiles.append(("Time", duration(sum(record.seconds.values())), most.replace("\xa0", " ", 1)))
    return tiles


def _training_tiles(training: TrainingPart) -> list[tuple[str, str, str]]:
    best = training.best
    losses = f"best {best.metric.replace('_', ' ')} {number(best.value)} at step {count(best.step)}" if best else ""
    last = training.final_eval_loss if training.final_eval_loss is not None else training.final_loss
    label = "Eval loss" if training.final_eval_loss is not None else "Training loss"
    bore = percent(training.trained_share) if training.trained_share is not None else None
    padding = f", {percent(training.padding_share)} padding" if training.padding_share is not None else ""
    mfu = ""
    if training.mfu is not None:
        mfu = f"MFU (model FLOPs utilization) {percent(training.mfu)} of {number(training.matmul_tflops)} TFLOP/s"
    return [
        ("Steps", count(training.steps), f"{training.epochs:.3g} {'epoch' if training.epochs == 1 else 'epochs'}"),
        ("Tokens", compact(training.tokens), f"{bore or compact(training.trained_tokens)} trained tokens{padding}"),
        ("Tokens per second", count(training.tokens_per_second), mfu),
        (label, number(last), losses),
    ]


def _evaluation(record: Record) -> Html | None:
    if record.evaluation is None or not record.evaluation.tasks:
        return None
    names = ("Metric", "Examples", "Base", "Tuned", "Difference", "Intervals", "Verdict")
    head = [
        tag("th", name, cls="num" if name in ("Examples", "Base", "Tuned", "Difference") else None) for name in names
    ]
    confidence = sorted({task.confidence for task in record.evaluation.tasks})
    sure = " and ".join(f"{100 * share:g} %" for share in confidence)
    compared = any(task.compared for task in record.evaluation.tasks)
    paired = " Differences are paired: both models answered the same examples." if compared else ""
    return tag(
        "div",
        tag(
            "table",
            tag("thead", tag("tr", head)),
            tag("tbody", [_task(t) for t in record.evaluation.tasks]),
            cls="cards",
        ),
        tag(
            "p",
            f"Small figures are {sure} confidence intervals.{paired} {base_line(record)}".rstrip(),
            cls="muted small",
        ),
    )


def _task(task: TaskPart) -> Html:
    """A row of the evaluation table."""
    arrow = "higher is better" if task.higher_is_better else "lower is better"
    value, interval = show_difference(task)
    p = show_p(task.difference.p_value if task.difference else None)
    rows = [(look, e.value, e.low, e.high) for look, e in (("base", task.base), ("tuned", task.tuned)) if e]
    tone = _VERDICT_TONE.get(task.verdict or "", "")
    return tag(
        "tr",
        tag("td", tag("span", tag("b", metric_name(task)), tag("small", f"{task.name}, {arrow}")), data_label="Metric"),
        tag("td", count(task.n), cls="num", data_label="Examples"),
        _estimate("Base", *show_estimate(task, task.base)),
        _estimate("Tuned", *show_estimate(task, task.tuned)),
        _estimate("Difference", value, " · ".join(part for part in (interval, p) if part)),
        tag("td", intervals(rows, lambda n: show_value(task, n)), cls="wide", data_label="Intervals"),
        tag("td", tag("span", task.verdict or "not compared", cls=f"pill {tone}".strip()), data_label="Verdict"),
    )


def _estimate(label: str, value: str, interval: str) -> Html:
    return tag(
        "td", tag("span", tag("b", value), tag("small", interval) if interval else None), cls="num", data_label=label
    )
