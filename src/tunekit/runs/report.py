"""The report: one self-contained page made from a run folder's own files, never from models."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from tunekit.core.errors import UserError
from tunekit.core.files import write_atomic
from tunekit.runs.layout import RunFolder
from tunekit.runs.metrics import read_metrics
from tunekit.runs.record import read_record
from tunekit.runs.report_html import page
from tunekit.runs.scrub import Scrubber


def write_report(folder: RunFolder) -> Path:
    """Writes ``report.html`` from record.json, metrics.jsonl, recipe.yaml and plan.json, and gives its path.

    The page loads nothing from anywhere. The recipe, plan and metrics may be missing (a run that failed early).

    Raises:
        UserError: the record, the metrics or the plan is damaged.
    """
    record = read_record(folder)
    scrubber = Scrubber.of_this_machine(folder.path)
    recipe = scrubber.text(folder.recipe.read_text(encoding="utf-8")) if folder.recipe.exists() else ""
    plan = _as_yaml(scrubber.value(_read_plan(folder.plan))) if folder.plan.exists() else ""
    write_atomic(folder.report, page(folder.name, record, read_metrics(folder.metrics), recipe, plan))
    return folder.report


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
