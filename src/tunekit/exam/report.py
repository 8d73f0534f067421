"""The report of an evaluation: one self-contained page made from its folder, never from models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunekit.core.files import write_atomic
from tunekit.exam.facts import REPORT, RESULTS, ExamRecord, load
from tunekit.exam.report_rows import Sample, changes_of, read_results, samples_of
from tunekit.exam.report_samples import Order, samples_section
from tunekit.exam.report_script import SCRIPT
from tunekit.exam.report_style import STYLE
from tunekit.exam.report_tables import (
    confusion_section,
    contamination_section,
    how_section,
    plots_section,
    results_table,
)
from tunekit.exam.report_words import forgetting_words, verdict_of
from tunekit.runs.markup import Html, document, tag
from tunekit.runs.report_style import STYLE as HOUSE_STYLE
from tunekit.runs.scrub import Scrubber
from tunekit.runs.wording import when


def write_report(folder: Path) -> Path:
    """Writes ``report.html`` from record.json and results.parquet, and gives its path. The page loads nothing.

    Raises:
        UserError: the record or the results are missing or damaged.
    """
    record = load(folder)
    samples = samples_of(read_results(folder), record.everything)
    path = folder / REPORT
    write_atomic(path, page(record, samples, Scrubber.of_this_machine(folder)))
    return path


def page(record: ExamRecord, samples: Sequence[Sample], scrubber: Scrubber) -> str:
    """The whole page.

    Args:
        record: the evaluation.
        samples: its rows.
        scrubber: takes secrets out of the rows' texts; the record was written without them.
    """
    order, changes = Order(record, samples), changes_of(samples)
    sections = [
        ("results", "Results", results_table(record, record.tasks, changes, order)),
        ("forgetting", "Forgetting", _forgetting(record, results_table(
            record, record.forgetting or (), changes, order, note=False))),
        ("intervals", "Intervals", plots_section(record)),
        ("confusion", "Confusion", confusion_section(samples)),
        ("contamination", "Contamination", contamination_section(record.contamination)),
        ("samples", "Rows", samples_section(record, samples, order, scrubber)),
        ("how", "How it was done", how_section(record)),
    ]  # fmt: skip
    present = [(key, title, content) for key, title, content in sections if content is not None]
    return document(
        f"{record.models.tuned.name} · tunekit",
        HOUSE_STYLE + STYLE,
        SCRIPT,
        _header(record, [(key, title) for key, title, _ in present]),
        tag(
            "main",
            _headline(record),
            [tag("section", tag("h2", title), content, id=key) for key, title, content in present],
            tag("footer", f"Written by tunekit {record.tunekit} from record.json and {RESULTS}. Times are UTC."),
        ),
    )


def _header(record: ExamRecord, sections: Sequence[tuple[str, str]]) -> Html:
    tuned, baseline = record.models.tuned, record.models.baseline
    facts = (f"against {baseline.name}" if baseline else "", record.engine, when(record.created))
    return tag(
        "header",
        tag("p", "tunekit evaluation", cls="brand"),
        tag("div", tag("h1", tuned.name), cls="titles"),
        tag("p", " · ".join(fact for fact in facts if fact), cls="facts"),
        tag("nav", [tag("a", title, href=f"#{key}") for key, title in sections], aria_label="sections"),
        cls="top",
    )


def _headline(record: ExamRecord) -> Html:
    words = verdict_of(record)
    warnings = tag("ul", [tag("li", warning) for warning in record.warnings], cls="warnings")
    return tag(
        "section",
        tag("p", words.title, cls="verdict"),
        [tag("p", detail) for detail in words.details],
        warnings if record.warnings else None,
        cls=f"headline {words.tone}",
        id="verdict",
    )


def _forgetting(record: ExamRecord, table: Html | None) -> Html | None:
    if table is None:
        return None
    return tag("div", tag("p", forgetting_words(record.forgetting or ())), table)
