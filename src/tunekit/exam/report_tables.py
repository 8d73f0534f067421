"""Sections of the report that hold no rows: results, intervals, confusion, contamination, how it was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tunekit.exam.facts import Contamination, ExamRecord, ExamTask
from tunekit.exam.report_rows import Change, Sample
from tunekit.exam.report_samples import Order
from tunekit.exam.report_words import (
    change_words,
    contamination_words,
    estimate_words,
    interval_note,
    p_words,
    verdict_word,
)
from tunekit.runs.charts import interval_chart
from tunekit.runs.markup import Child, Html, tag
from tunekit.runs.record import TaskPart
from tunekit.runs.verdict import in_percent, metric_name, show_value
from tunekit.runs.wording import count, duration

Changes = Mapping[tuple[str, str], Counter[Change]]
TONES = {"better": "good", "worse": "bad"}
_MOST_LABELS = 10  # of a confusion matrix
_LONGEST_LABEL = 40  # characters
_OTHER = "(other)"


def results_table(
    record: ExamRecord, tasks: Sequence[ExamTask], changes: Changes, order: Order, *, note: bool = True
) -> Html | None:
    """Base beside tuned for every task and metric; below a task the same without the rows of the training data."""
    if not tasks:
        return None
    numeric = ("Rows", "Base", "Tuned", "Change")
    names = ("Task", *numeric, "Verdict")
    head = [tag("th", name, cls="num" if name in numeric else None) for name in names]
    lines: list[Child] = []
    for task in tasks:
        lines.append(_task(task, changes.get((task.name, task.metric), Counter()), order))
        if task.clean is not None:
            lines.append(tag("tr", _cells(task.clean, "rows not trained on", None), cls="clean"))
    return tag(
        "div",
        tag("table", tag("thead", tag("tr", head)), tag("tbody", lines), cls="cards results"),
        tag("p", interval_note(record), cls="muted small") if note else None,
    )


def _task(task: ExamTask, changed: Counter[Change], order: Order) -> Html:
    arrow = "higher is better" if task.higher_is_better else "lower is better"
    words = ", ".join((metric_name(task), arrow, *([task.note] if task.note else [])))
    links: list[Child] = []
    for show in ("won", "lost") if changed["won"] or changed["lost"] else ():
        link = order.link(task.name, task.metric, show)
        links += [" · " if links else None, tag("a", f"{count(changed[show])} {show}", href=link)]
    return tag("tr", _cells(task, words, links), cls="whole" if task.clean is not None else None)


def _cells(task: TaskPart, about: str, links: Sequence[Child] | None) -> list[Html]:
    name = tag("b", task.name) if links is not None else None
    change, interval = change_words(task, task.difference)
    p = p_words(task)
    verdict = tag("span", verdict_word(task), cls=f"pill {TONES.get(task.verdict or '', '')}".strip())
    return [
        tag("td", tag("span", name, tag("small", about)), data_label="Task"),
        tag("td", count(task.n), cls="num", data_label="Rows"),
        _figure("Base", *estimate_words(task, task.base)),
        _figure("Tuned", *estimate_words(task, task.tuned)),
        _figure("Change", change, " · ".join(part for part in (interval, p) if part)),
        tag("td", tag("span", verdict, tag("small", links) if links else None), data_label="Verdict"),
    ]


def _figure(label: str, value: str, below: str) -> Html:
    words = tag("span", tag("b", value), tag("small", below) if below else None)
    return tag("td", words, cls="num", data_label=label)


def plots_section(record: ExamRecord) -> Html | None:
    """A figure for every metric: the tasks' values with their intervals on one axis."""
    metrics: dict[tuple[str, bool], list[ExamTask]] = {}
    for task in record.everything:
        metrics.setdefault((task.metric, in_percent(task)), []).append(task)
    figures = [_plot(tasks) for tasks in metrics.values()]
    return tag("div", figures) if figures else None


def _plot(tasks: Sequence[ExamTask]) -> Html:
    looks = [(t.name, [("base", t.base), ("tuned", t.tuned)]) for t in tasks]
    groups = [(name, [(look, e.value, e.low, e.high) for look, e in pair if e is not None]) for name, pair in looks]
    title = metric_name(tasks[0])
    return interval_chart(
        title[:1].upper() + title[1:], groups, lambda n: show_value(tasks[0], n), shares=in_percent(tasks[0])
    )


def confusion_section(samples: Sequence[Sample]) -> Html | None:
    """A matrix for every task whose answers are few short labels: what was right against what was said."""
    blocks = []
    for task in dict.fromkeys(sample.task for sample in samples):
        rows = [sample for sample in samples if sample.task == task]
        labels = _labels(rows)
        if not labels:
            continue
        tables = [_matrix("Tuned", [(s.reference.strip(), (s.tuned or "").strip()) for s in rows], labels)]
        if any(sample.base is not None for sample in rows):
            tables.insert(0, _matrix("Base", [(s.reference.strip(), (s.base or "").strip()) for s in rows], labels))
        blocks.append(tag("div", tag("h3", task), tag("div", tables, cls="matrices")))
    note = tag("p", "Rows are the right labels, columns the answers.", cls="muted small")
    return tag("div", blocks, note) if blocks else None


def _labels(rows: Sequence[Sample]) -> list[str]:
    """The labels of a classification task; none when the task is something else."""
    labels = sorted({row.reference.strip() for row in rows})
    short = all(0 < len(label) <= _LONGEST_LABEL for label in labels)
    if not short or not 2 <= len(labels) <= _MOST_LABELS or len(rows) < 3 * len(labels):
        return []
    answered = sum((row.tuned or "").strip() in labels for row in rows)
    return labels if 2 * answered >= len(rows) else []


def _matrix(title: str, pairs: Sequence[tuple[str, str]], labels: Sequence[str]) -> Html:
    counts = Counter((right, said if said in labels else _OTHER) for right, said in pairs)
    columns = [*labels, *([_OTHER] if any(said == _OTHER for _, said in counts) else [])]
    lines = []
    for right in labels:
        cells = []
        for said in columns:
            n = counts[right, said]
            look = "hit" if said == right else "miss" if n else None
            cells.append(tag("td", count(n), cls=look))
        lines.append(tag("tr", tag("th", right, scope="row"), cells))
    head = tag("tr", tag("th", ""), [tag("th", said, scope="col") for said in columns])
    return tag("table", tag("caption", title), tag("thead", head), tag("tbody", lines), cls="matrix")


def contamination_section(found: Contamination | None) -> Html | None:
    """What was found in the training data, row by row."""
    if found is None:
        return None
    lines = [
        tag("tr", tag("td", leak.where, cls="mono"), tag("td", leak.matched, cls="mono"), tag("td", leak.how))
        for leak in found.rows
    ]
    heads = [tag("th", head) for head in ("Evaluation row", "Training row", "How")]
    table = tag("table", tag("thead", tag("tr", heads)), tag("tbody", lines))
    return tag("div", tag("p", contamination_words(found)), tag("div", table, cls="list") if lines else None)


def how_section(record: ExamRecord) -> Html:
    """Models, seeds, versions and times: what is needed to do it again."""
    models = [("Tuned", record.models.tuned)]
    models += [("Baseline", record.models.baseline)] if record.models.baseline else []
    columns = []
    for title, model in models:
        facts = model.model_dump()
        columns.append(_pairs(title, [(key, str(value)) for key, value in facts.items() if value]))
    run = [("engine", record.engine), ("confidence", f"{100 * record.confidence:g} %"), ("created", record.created)]
    run += [("data", record.data_fingerprint), *((f"seed, {name}", str(n)) for name, n in record.seeds.items())]
    took = [*record.seconds.items(), *((f"task {task.name}", task.seconds) for task in _once(record) if task.seconds)]
    columns.append(_pairs("Evaluation", [(name, value) for name, value in run if value]))
    columns.append(_pairs("Time", [(name, duration(seconds)) for name, seconds in took]))
    columns.append(_pairs("Versions", list(record.versions.items())))
    return tag("div", columns, cls="columns")


def _once(record: ExamRecord) -> list[ExamTask]:
    """One entry a task: its metrics share the time."""
    return list({task.name: task for task in reversed(record.everything)}.values())[::-1]


def _pairs(title: str, rows: Sequence[tuple[str, str]]) -> Html | None:
    if not rows:
        return None
    listed = [(tag("dt", name), tag("dd", value)) for name, value in rows]
    return tag("div", tag("h3", title), tag("dl", listed, cls="pairs"))
