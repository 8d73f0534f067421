"""The tasks of source and artefacts in words: a table for the terminal, and one for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from tunekit.compress.tasks import read
from tunekit.exam.facts import ExamTask
from tunekit.exam.report_words import change_words, estimate_words, p_words, verdict_word
from tunekit.runs.markup import Html, tag
from tunekit.runs.summary import slim_table, two_lines
from tunekit.runs.verdict import metric_name, show_p
from tunekit.runs.wording import count

Made = Sequence[tuple[str, Mapping[str, Any]]]
"""Artefacts by name, with their records."""
_VERDICT = 14  # columns: two lines of the longest
_TONES = {"better": "green", "worse": "red"}
_PILLS = {"better": "good", "worse": "bad"}


def tasks_grid(made: Made) -> list[RenderableType]:
    """Of each task the source, then a line for each artefact: its score, what changed, the verdict; and a gap.

    Empty where nothing was asked.
    """
    found = list(_by_task(made))
    if not found:
        return []
    table = slim_table()
    table.add_column("task")
    table.add_column("", no_wrap=True)
    for name in ("score", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", max_width=_VERDICT)
    for group in found:
        task = group[0][1]
        metric = metric_name(task)
        label = two_lines(task.name, metric if metric != task.name else "")
        table.add_row(label, "source", two_lines(*estimate_words(task, task.base)))
        for name, task in group:
            change, interval = change_words(task, task.difference)
            moved = ", ".join(filter(None, (change, show_p(task.difference.p_value if task.difference else None))))
            judged = Text(verdict_word(task), style=_TONES.get(task.verdict or "", "dim"))
            table.add_row("", name, two_lines(*estimate_words(task, task.tuned)), two_lines(moved, interval), judged)
    return [table, ""]


def tasks_table(made: Made) -> Html | None:
    """The same for the report."""
    found = list(_by_task(made))
    if not found:
        return None
    names = ("Task", "Rows", "Source", "", "Score", "Change", "Verdict")
    head = [tag("th", name, cls="num" if name in ("Rows", "Source", "Score", "Change") else None) for name in names]
    lines = [tag("tr", _cells(name, task, first=at == 0)) for group in found for at, (name, task) in enumerate(group)]
    words = "Paired by row: source and smaller model answered the same rows. Small figures are intervals."
    table = tag("table", tag("thead", tag("tr", head)), tag("tbody", lines))
    return tag("div", tag("div", table, cls="figures"), tag("p", words, cls="muted small"))


def _by_task(made: Made) -> list[list[tuple[str, ExamTask]]]:
    """Of each task and metric the artefacts by name."""
    found: dict[tuple[str, str], list[tuple[str, ExamTask]]] = {}
    for name, record in made:
        for task in read(record.get("tasks") or ()):
            found.setdefault((task.name, task.metric), []).append((name, task))
    return list(found.values())


def _cells(name: str, task: ExamTask, *, first: bool) -> list[Html]:
    change, interval = change_words(task, task.difference)
    verdict = tag("span", verdict_word(task), cls=f"pill {_PILLS.get(task.verdict or '', '')}".strip())
    arrow = "higher is better" if task.higher_is_better else "lower is better"
    label = tag("span", tag("b", task.name), tag("small", f"{metric_name(task)}, {arrow}"))
    return [
        tag("td", label if first else None),
        tag("td", count(task.n) if first else None, cls="num"),
        _figure(*estimate_words(task, task.base)) if first else tag("td", None),
        tag("td", tag("b", name)),
        _figure(*estimate_words(task, task.tuned)),
        _figure(change, interval),
        tag("td", tag("span", verdict, tag("small", p_words(task)) if p_words(task) else None)),
    ]


def _figure(value: str, below: str) -> Html:
    return tag("td", tag("span", value, tag("small", below) if below else None), cls="num")
