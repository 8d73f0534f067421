"""What a run was compared with, for those who read its table: not always the model as it came."""

from __future__ import annotations

from tunekit.core.errors import UserError
from tunekit.plan.plan import Plan
from tunekit.runs.layout import RunFolder
from tunekit.runs.record import Record
from tunekit.runs.scrub import Scrubber


def with_base(record: Record, folder: RunFolder) -> Record:
    """The record whose evaluation says what its base is, by the plan that lies beside it; as it is without a plan."""
    if record.evaluation is None or record.evaluation.base_is:
        return record
    try:
        words = Plan.load(folder.plan).base_is
    except UserError:  # of another version: the record is shown all the same
        return record
    words = Scrubber.of_this_machine(folder.path).text(words) if words else ""  # as all that a record says
    return record.updated(evaluation=record.evaluation.model_copy(update={"base_is": words}))


def base_line(record: Record) -> str:
    """A sentence below the table; empty where the base is the model itself, or nothing was compared."""
    found = record.evaluation
    compared = found is not None and any(task.base is not None for task in found.tasks)
    return f"Base: {found.base_is}." if found is not None and compared and found.base_is else ""
