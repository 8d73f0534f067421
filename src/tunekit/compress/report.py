"""The report of smaller models: one self-contained page of figures, the trade of size for quality, and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tunekit
from tunekit.compress.made import Made
from tunekit.compress.show import about, size
from tunekit.compress.task_words import tasks_table
from tunekit.compress.words import agreement, divergence, interval, rise
from tunekit.core.files import write_atomic
from tunekit.runs.charts import tick_words, ticks
from tunekit.runs.markup import Html, document, tag
from tunekit.runs.report_style import STYLE as HOUSE_STYLE
from tunekit.runs.scrub import Scrubber
from tunekit.runs.wording import count, number

REPORT = "report.html"
SHOWN = 40  # answers of a kind
MIB = 1 << 20
STYLE = """
.trade .frame{height:320px}
.trade .plot{cursor:default}
.trade .point{position:absolute;width:11px;height:11px;border-radius:50%;background:var(--tuned);
transform:translate(-50%,50%)}
.trade .point.source{background:var(--base)}
.trade .point.worse{opacity:.45}
.trade .name{position:absolute;font-size:12.5px;transform:translate(9px,50%);white-space:nowrap}
.trade .name.left{transform:translate(calc(-100% - 9px),50%)}
.trade .name.above{transform:translate(-50%,-70%)}
.trade .across{position:absolute;left:0;right:0;border-top:1px solid var(--grid)}
.trade .down{position:absolute;top:0;bottom:0;border-left:1px solid var(--grid)}
.trade .axes{font-size:12.5px;color:var(--soft);margin:6px 0 0}
table.answers{table-layout:fixed;font-size:14px}
table.answers td{vertical-align:top;overflow-wrap:anywhere;white-space:pre-wrap}
table.answers td.other{background:color-mix(in srgb,var(--tuned) 14%,transparent)}
.figures{overflow-x:auto;margin-bottom:22px}
.figures td.num{white-space:nowrap}
.figures table{width:100%}
"""


def write_report(folder: Path, made: Sequence[Made]) -> Path | None:
    """Writes ``report.html`` in a folder, and gives its path; None where nothing was made."""
    done = [(one.kind, one.record) for one in made if one.record is not None]
    if not done:
        return None
    scrubber = Scrubber.of_this_machine(folder)
    refused = [(one.kind, str(one.error)) for one in made if one.error is not None]
    write_atomic(folder / REPORT, page(done, refused, scrubber))
    return folder / REPORT


def page(done: Sequence[tuple[str, Mapping[str, Any]]], refused: Sequence[tuple[str, str]], scrubber: Scrubber) -> str:
    """The whole page.

    Args:
        done: kinds with their records.
        refused: kinds with the reason.
        scrubber: takes secrets out of texts.
    """
    source = done[0][1]["source"]["model"]
    refused = [(kind, scrubber.text(why)) for kind, why in refused]
    sections = [
        ("cost", "What it costs and saves", _figures(done, refused)),
        *([("tasks", "The run's own tasks", asked)] if (asked := tasks_table(done)) is not None else []),
        ("trade", "Size against divergence", _trade(done)),
        ("answers", "Answers side by side", _answers(done, scrubber)),
        ("how", "How it was done", _how(done, scrubber)),
    ]
    header = tag(
        "header",
        tag("p", "tunekit quantize", cls="brand"),
        tag("div", tag("h1", source), cls="titles"),
        tag("p", scrubber.text(about(done[0][1])), cls="facts"),
        tag("nav", [tag("a", title, href=f"#{key}") for key, title, _ in sections], aria_label="sections"),
        cls="top",
    )
    main = tag(
        "main",
        [tag("section", tag("h2", title), content, id=key) for key, title, content in sections],
        tag("footer", f"Written by tunekit {tunekit.__version__}."),
    )
    return document(f"{source} · tunekit", HOUSE_STYLE + STYLE, "", header, main)


def _figures(done: Sequence[tuple[str, Mapping[str, Any]]], refused: Sequence[tuple[str, str]]) -> Html:
    """Quality, then what loading and running take."""
    first = done[0][1]
    quality = [
        _line("source", [(size(first["source_size"]), ""), interval(first["source_perplexity"]), *[("–", "")] * 4])
    ]
    costs = [_line("source", _speeds({key: values[0] for key, values in first["cost"].items()}))]
    for kind, record in done:
        quality.append(
            _line(
                kind,
                [
                    (size(record["size"]), f"÷ {record['source_size'] / record['size']:.2f}"),
                    interval(record["perplexity"]),
                    rise(record["increase"]),
                    divergence(record),
                    agreement(record),
                    (f"{record['same_texts']} of {len(record['texts'])}", ""),
                ],
            )
        )
        costs.append(_line(kind, _speeds({key: values[1] for key, values in record["cost"].items()})))
    told = [tag("p", tag("b", kind), f" was refused: {why}", cls="muted") for kind, why in refused]
    return tag(
        "div",
        _table(("Size", "Perplexity", "Rises by", "Mean KL", "Top-1", "Answers"), quality),
        _table(("Loads in", "Memory at most", "Reads", "Writes"), costs),
        told,
    )


def _table(names: Sequence[str], lines: Sequence[Html]) -> Html:
    head = tag("tr", tag("th", ""), [tag("th", name, cls="num") for name in names])
    return tag("div", tag("table", tag("thead", head), tag("tbody", lines)), cls="figures")


def _line(name: str, cells: Sequence[tuple[str, str]]) -> Html:
    return tag("tr", tag("td", tag("b", name)), [
        tag("td", tag("span", value, tag("small", below) if below else None), cls="num") for value, below in cells
    ])  # fmt: skip


def _speeds(cost: Mapping[str, float]) -> list[tuple[str, str]]:
    return [
        (f"{cost['load_seconds']:.1f} s", ""), (size(cost["peak_memory"]), ""),
        (f"{count(round(cost['prompt_speed']))} tok/s", ""), (f"{count(round(cost['answer_speed']))} tok/s", ""),
    ]  # fmt: skip


def frontier(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of points (size, divergence): whether no other is as good in both and better in one."""
    return [
        not any(a <= x and b <= y and (a < x or b < y) for a, b in points) for x, y in points
    ]  # fmt: skip


def _trade(done: Sequence[tuple[str, Mapping[str, Any]]]) -> Html:
    """A point for each kind; those that another one beats in both are faint."""
    first = done[0][1]
    points = [(first["source_size"] / MIB, 0.0), *((r["size"] / MIB, r["mean_kl"]) for _, r in done)]
    names = ["source", *(kind for kind, _ in done)]
    x_marks, y_marks = ticks(0.0, max(x for x, _ in points)), ticks(0.0, max(y for _, y in points))
    spans = x_marks[-1] or 1.0, y_marks[-1] or 1.0
    best, drawn = frontier(points), []
    for (x, y), name, good in zip(points, names, best, strict=True):
        at = f"left:{100 * x / spans[0]:.2f}%;bottom:{100 * y / spans[1]:.2f}%"
        told = f"{name}: {x:.1f} MiB, {number(y)} nats"
        look = "point source" if name == "source" else "point" if good else "point worse"
        drawn += [tag("i", cls=look, style=at, title=told)]
        place = "name above" if name == "source" else "name left" if x > 0.8 * spans[0] else "name"
        drawn += [tag("span", name, cls=place, style=at)]
    rules = [tag("i", cls="down", style=f"left:{100 * x / spans[0]:.2f}%") for x in x_marks]
    rules += [tag("i", cls="across", style=f"bottom:{100 * y / spans[1]:.2f}%") for y in y_marks]
    y_words = [(mark, word) for mark, word in zip(y_marks, tick_words(y_marks), strict=True)]
    x_words = [(mark, word) for mark, word in zip(x_marks, tick_words(x_marks), strict=True)]
    y_axis = [tag("span", word, cls="tick", style=f"bottom:{100 * mark / spans[1]:.2f}%") for mark, word in y_words]
    x_axis = [tag("span", word, cls="tick", style=f"left:{100 * mark / spans[0]:.2f}%") for mark, word in x_words]
    frame = tag("div", tag("div", y_axis, cls="y-axis"), tag("div", rules, drawn, cls="plot", role="img",
                aria_label="mean KL by size"), tag("div", x_axis, cls="x-axis"), cls="frame")  # fmt: skip
    words = "Across: size of the tensors, MiB. Up: mean KL from the source, nats. A faint point is beaten in both."
    return tag("figure", frame, tag("p", words, cls="axes"), cls="chart trade")


def _answers(done: Sequence[tuple[str, Mapping[str, Any]]], scrubber: Scrubber) -> Html:
    kinds, prompts = [kind for kind, _ in done], done[0][1]["prompts"]
    sources = [pair[0] for pair in done[0][1]["texts"]]
    texts = [[pair[1] for pair in record["texts"]] for _, record in done]
    if not sources:
        return tag("p", "No answers were asked for.", cls="muted")
    lines = [
        tag(
            "tr",
            [
                tag("td", scrubber.text(prompts[at], content=True)),
                tag("td", scrubber.text(source, content=True)),
                *(
                    tag("td", scrubber.text(column[at], content=True), cls="" if column[at] == source else "other")
                    for column in texts
                ),
            ],
        )
        for at, source in list(enumerate(sources))[:SHOWN]
    ]
    head = tag("tr", [tag("th", name) for name in ("prompt", "source", *kinds)])
    return tag("div", tag("table", tag("thead", head), tag("tbody", lines), cls="answers"), cls="figures")


def _how(done: Sequence[tuple[str, Mapping[str, Any]]], scrubber: Scrubber) -> Html:
    lines = []
    for kind, record in done:
        used = record["calibration"]
        looked = f"{used['rows']} rows, {used['tokens']:,} tokens of {used['source']}" if used else "no text"
        looked = scrubber.text(looked)
        options = ", ".join(f"{key}: {value}" for key, value in record["options"].items() if value not in (None, []))
        took = f"{record['seconds']:.1f} s, {size(record['making_memory'])}"
        tensors = f"{size(record['expected_size'])} expected, {size(record['size'])} found"
        cells = [tag("td", text) for text in (looked, options or "–", took, tensors)]
        lines.append(tag("tr", tag("td", tag("b", kind)), cells))
    head = tag("tr", [tag("th", name) for name in ("", "Looked at", "Options", "Making took", "Tensors")])
    return tag("div", tag("table", tag("thead", head), tag("tbody", lines)), cls="figures")
