"""The report: one self-contained page made from a run folder's own files, never from models."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunekit.core.errors import UserError
from tunekit.core.files import write_atomic
from tunekit.runs.baseline import with_base
from tunekit.runs.layout import RunFolder
from tunekit.runs.metrics import read_metrics
from tunekit.runs.record import read_record
from tunekit.runs.report_html import page
from tunekit.runs.report_rollouts import MOST_ANSWERS
from tunekit.runs.rollouts import SampledAnswer, read_rollouts
from tunekit.runs.scrub import Scrubber


def write_report(folder: RunFolder) -> Path:
    """Writes ``report.html`` from record.json, metrics.jsonl, rollouts.jsonl, recipe.yaml and plan.json.

    The page loads nothing from anywhere. All but the record may be missing (a run that failed early, a method without
    rollouts).

    Returns:
        the page's path.

    Raises:
        UserError: one of the files is damaged.
    """
    scrubber = Scrubber.of_this_machine(folder.path)
    record = with_base(read_record(folder), folder)
    recipe = scrubber.text(folder.recipe.read_text(encoding="utf-8")) if folder.recipe.exists() else ""
    plan = _as_yaml(scrubber.value(_read_plan(folder.plan))) if folder.plan.exists() else ""
    found, total = read_rollouts(folder.rollouts, MOST_ANSWERS)
    answers = [_scrubbed(answer, scrubber) for answer in found]
    metrics = read_metrics(folder.metrics)
    write_atomic(folder.report, page(folder.name, record, metrics, recipe, plan, (answers, total)))
    return folder.report


def _scrubbed(answer: SampledAnswer, scrubber: Scrubber) -> SampledAnswer:
    """The answer as it may be shown to others."""
    return replace(
        answer,
        prompt=scrubber.text(answer.prompt, content=True),
        reference=scrubber.text(answer.reference, content=True),
        answer=scrubber.text(answer.answer, content=True),
        parts={scrubber.text(name): value for name, value in answer.parts.items()},
    )


def _read_plan(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}:{error.colno}"
        raise UserError(
            f"damaged plan: {error.msg}", where=where, fix="remove the file to write the report without it"
        ) from error


def _as_yaml(value: Any) -> str:
    from ruamel.yaml import YAML

    writer = YAML()
    writer.width = 120
    text = io.StringIO()
    writer.dump(value, text)
    return text.getvalue()
