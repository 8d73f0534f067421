"""The report's table of rows: its filter, its first page, and all of them as data that the script pages through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from tunekit.exam.facts import RESULTS, ExamRecord
from tunekit.exam.report_rows import Sample, Score, drawn
from tunekit.exam.report_words import score_words
from tunekit.runs.markup import Child, Html, data_island, tag
from tunekit.runs.scrub import Scrubber
from tunekit.runs.wording import count

PAGE = 25  # rows
_SHOWS = {"right": "right", "wrong": "wrong", "changed": "won or lost", "won": "won", "lost": "lost", "same": "same"}
_LEAK = {"leak": "in the training data"}
_HEAD, _TAIL = 800, 3200  # characters kept of a longer text: what is asked stands at the end of a prompt


def samples_section(record: ExamRecord, samples: Sequence[Sample], order: Order, scrubber: Scrubber) -> Html | None:
    """All rows with their texts and scores; ``scrubber`` takes secrets out of them."""
    if not samples:
        return None
    shown = drawn(samples)
    rows = order.rows(shown, scrubber)
    compared = record.models.baseline is not None
    data = {"page": PAGE, "compared": compared, "tasks": order.tasks, "rows": rows}
    left_out = len(samples) - len(shown)
    heads = ("Prompt", "Reference", *(["Base"] if compared else []), "Tuned", "Scores")
    note = f"Long texts are cut in the middle; {RESULTS} holds them whole."
    if left_out:
        note = f"{count(len(shown))} of {count(len(samples))} rows, drawn at random; {RESULTS} holds all. {note}"
    return tag(
        "div",
        _filters(order, compared, record.contamination is not None, len(rows)),
        tag(
            "table",
            tag("thead", tag("tr", [tag("th", head) for head in heads])),
            tag("tbody", [_line(row, order, compared) for row in rows[:PAGE]], id="rows-body"),
            cls="rows",
        ),
        tag("p", note, cls="muted small"),
        data_island(data, id="rows-data"),
    )


class Order:
    """Numbers tasks, and the metrics of each, in the order of the record."""

    def __init__(self, record: ExamRecord, samples: Sequence[Sample]) -> None:
        self._metrics: dict[str, dict[str, str]] = {}
        for task in record.everything:
            nats = task.statistic == "perplexity"  # its rows hold what perplexity is made of
            label = "nats a token" if nats else task.metric.replace("_", " ")
            self._metrics.setdefault(task.name, {}).setdefault(task.metric, label)
        for sample in samples:
            for metric in sample.scores:
                self._metrics.setdefault(sample.task, {}).setdefault(metric, metric.replace("_", " "))
        self._numbers = {name: at for at, name in enumerate(self._metrics)}
        self._met = {(sample.task, metric) for sample in samples for metric in sample.scores}

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """Names of the tasks and of their metrics."""
        return [{"name": name, "metrics": list(labels.values())} for name, labels in self._metrics.items()]

    def value(self, task: str, metric: str | None = None) -> str:
        """What the filter calls a task, or a task under a metric."""
        number = str(self._numbers[task])
        return number if metric is None else f"{number}/{list(self._metrics[task]).index(metric)}"

    def link(self, task: str, metric: str, show: str) -> str:
        """A link within the page that filters its rows; the script takes a lone metric for the task."""
        single = len([pair for pair in self._met if pair[0] == task]) == 1
        return "#" + urlencode({"task": self.value(task, None if single else metric), "show": show})

    def choices(self) -> list[tuple[str, str]]:
        """(value, text) of the filter by task."""
        found = []
        for name, metrics in self._metrics.items():
            met = {metric: label for metric, label in metrics.items() if (name, metric) in self._met}
            if met:
                found.append((self.value(name), name))
            if len(met) > 1:
                found += [(self.value(name, metric), f"{name}: {label}") for metric, label in met.items()]
        return found

    def rows(self, samples: Sequence[Sample], scrubber: Scrubber) -> list[list[Any]]:
        """Rows for the script: task, where, prompt, reference, base, tuned, scores by metric, in the training data."""
        texts = [text for sample in samples for text in _texts(sample) if text is not None]
        content = iter(_scrubbed([_cut(text) for text in texts], scrubber, content=True))
        places = _scrubbed([sample.where for sample in samples], scrubber, content=False)
        return [
            [
                self._numbers[sample.task],
                place,
                *(None if text is None else next(content) for text in _texts(sample)),
                [_plain(sample.scores.get(metric)) for metric in self._metrics[sample.task]],
                int(sample.contaminated),
            ]
            for sample, place in zip(samples, places, strict=True)
        ]


def _scrubbed(texts: Sequence[str], scrubber: Scrubber, *, content: bool) -> list[str]:
    """The texts scrubbed as one, which is ten times as fast as one by one."""
    whole = "\n".join(texts)
    mark = "\n\0\n"
    while mark in whole:  # a text may hold anything
        mark = mark[:-1] + "\0\n"
    return scrubber.text(mark.join(texts), content=content).split(mark)


def _texts(sample: Sample) -> tuple[str | None, ...]:
    return sample.prompt, sample.reference, sample.base, sample.tuned


def _plain(score: Score | None) -> list[str] | None:
    """A score for the script: base and tuned as shown, the mark, the change."""
    return None if score is None else [score_words(score.base), score_words(score.tuned), score.mark, score.change]


def _cut(text: str) -> str:
    if len(text) <= _HEAD + _TAIL:
        return text
    left_out = len(text) - _HEAD - _TAIL
    return f"{text[:_HEAD]}\n[… {count(left_out)} characters …]\n{text[-_TAIL:]}"


def _filters(order: Order, compared: bool, leaks: bool, rows: int) -> Html:
    shows = {key: text for key, text in _SHOWS.items() if compared or key in ("right", "wrong")}
    shows |= _LEAK if leaks else {}
    tasks = order.choices()
    return tag(
        "div",
        tag("input", type="search", id="filter-words", placeholder="Filter by text", aria_label="filter rows by text"),
        tag(
            "select",
            tag("option", "all tasks", value=""),
            [tag("option", text, value=value) for value, text in tasks],
            id="filter-task",
            aria_label="filter rows by task and metric",
        ),
        tag(
            "select",
            tag("option", "all rows", value=""),
            [tag("option", text, value=key) for key, text in shows.items()],
            id="filter-show",
            aria_label="filter rows by outcome",
        ),
        tag("button", "Back", type="button", id="filter-back", disabled=True),
        tag("button", "Next", type="button", id="filter-on", disabled=rows <= PAGE),
        tag("span", f"the first {count(min(PAGE, rows))} of {count(rows)} rows", id="filter-count", cls="muted"),
        cls="filters",
    )


def _line(row: Sequence[Any], order: Order, compared: bool) -> Html:
    """A row of the first page, as the script draws them."""
    task, where, prompt, reference, base, tuned, scores, leak = row
    about = tag("small", f"{where} · {order.tasks[task]['name']}", cls="mono")
    return tag(
        "tr",
        tag("td", _prose(prompt), about, data_label="Prompt"),
        tag("td", _prose(reference), data_label="Reference"),
        tag("td", _prose(base), data_label="Base") if compared else None,
        tag("td", _prose(tuned), data_label="Tuned"),
        tag("td", _scores(scores, order.tasks[task]["metrics"], compared, leak), data_label="Scores"),
    )


def _prose(text: str | None) -> Html:
    if text is None:
        return tag("span", "–", cls="muted")
    return tag("div", text, cls="text") if text.strip() else tag("span", "(empty)", cls="muted")


def _scores(scores: Sequence[list[str] | None], metrics: Sequence[str], compared: bool, leak: int) -> Html:
    lines: list[Child] = []
    for metric, score in zip(metrics, scores):
        if score is None:
            continue
        base, tuned, mark, change = score
        pill = tag("span", change, cls=f"pill {'good' if change == 'won' else 'bad'}")
        lines.append(
            tag(
                "div",
                tag("span", metric, cls="muted"),
                " ",
                tag("b", f"{base} → {tuned}" if compared else tuned, cls=mark or None),
                [" ", pill] if change in ("won", "lost") else None,
            )
        )
    return tag("div", lines, tag("span", "in the training data", cls="pill leak") if leak else None, cls="scores")
