"""Joins the rooms: plan -> data -> model -> trainer -> record -> report. Every method goes through here."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekit.core.errors import MachineError, TunekitError
from tunekit.core.progress import Screen
from tunekit.data.prepare import Prepared
from tunekit.plan.plan import Plan
from tunekit.runs.environment import git_state, library_versions
from tunekit.runs.layout import RunFolder
from tunekit.runs.record import Record, write_record
from tunekit.runs.report import write_report
from tunekit.runs.wording import now_utc
from tunekit.train.inputs import Inputs


@dataclass(frozen=True)
class Job:
    """A run to be made.

    Args:
        plan: the resolved plan.
        recipe_text: the recipe as the user wrote it, kept with the run.
        screen_options: ``--quiet`` or ``--json`` for the processes of a launch.
    """

    plan: Plan
    recipe_text: str
    screen_options: tuple[str, ...] = ()


def run(job: Job, screen: Screen) -> Record:
    """Makes a run: prepares data, trains, evaluates, saves, and writes record and report, also when it fails.

    Raises:
        TunekitError: of the kind that fits the cause; the record says so too.
    """
    plan = job.plan
    folder = RunFolder(Path(plan.run_dir))
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.recipe.write_text(job.recipe_text, encoding="utf-8")
    plan.save(folder.plan)
    record = _opening(plan)
    write_record(folder, record)
    made = _Made(record)
    try:
        _make(job, folder, made, screen)
    except BaseException as error:
        write_record(folder, _ended_by(made.record, error))
        write_report(folder)
        raise
    record = made.record.ended("done", 0)
    write_record(folder, record)
    write_report(folder)
    return record


@dataclass
class _Made:
    """The record as far as the run has come; a failure writes what is known by then."""

    record: Record


def _ended_by(record: Record, error: BaseException) -> Record:
    if isinstance(error, KeyboardInterrupt):
        return record.ended("stopped", 130)
    if isinstance(error, TunekitError):
        return record.ended("failed", error.exit_code, error)
    if isinstance(error, (OSError, MemoryError)):
        return record.ended("failed", MachineError.exit_code, MachineError(f"{type(error).__name__}: {error}"))
    return record.ended("failed", 1, TunekitError(f"{type(error).__name__}: {error}"))


def _opening(plan: Plan) -> Record:
    machine = plan.hardware
    hardware: dict[str, Any] = {
        "processor": machine.cpu,
        "cores": machine.cores,
        "memory_gb": round(machine.memory / 1e9, 1),
        "gpus": [{"name": gpu.name, "memory_gb": round(gpu.memory / 1e9, 1)} for gpu in machine.gpus],
    }
    return Record(
        method=plan.method,
        created=now_utc(),
        versions=library_versions(),
        hardware=hardware | {"processes": plan.processes, "threads": plan.threads, "precision": plan.precision},
        git=git_state(Path.cwd()),
        seeds={"train": plan.recipe.train.seed},
        plan_hash=plan.hash,
    )


def _make(job: Job, folder: RunFolder, made: _Made, screen: Screen) -> None:
    from tunekit.train.logs import library_logs_to

    plan = job.plan
    with library_logs_to(folder.log):
        started = time.perf_counter()
        prepared = Inputs(plan.recipe, Path(plan.recipe_folder)).prepare(screen, folder.path / "data")
        shutil.copyfile(prepared.ledger_path, folder.ledger)
        seconds = {"preparing": round(time.perf_counter() - started, 3)}
        made.record = made.record.updated(data=_data_part(prepared), seconds=seconds)
        write_record(folder, made.record)
        say_ledger(prepared.facts, screen)
        outcome = _trained(job, folder, prepared, screen)
    made.record = made.record.updated(
        data=outcome.data or made.record.data,
        model=outcome.model,
        training=outcome.training,
        evaluation=outcome.evaluation,
        seconds=made.record.seconds | outcome.seconds,
        artefact=folder.model.name,
    )


def _trained(job: Job, folder: RunFolder, prepared: Prepared, screen: Screen) -> Any:
    if job.plan.processes > 1:
        from tunekit.train.launch import launch

        return launch(job.plan, folder.plan, prepared.folder, list(job.screen_options))
    from tunekit.train.session import Session

    return Session(job.plan, prepared, screen).run()


def _data_part(prepared: Prepared) -> dict[str, Any]:
    facts = prepared.facts
    return {"fingerprint": facts["fingerprint"], "splits": facts["summary"]}


def say_ledger(facts: dict[str, Any], screen: Screen) -> None:
    """One line a split: what became of its rows."""
    for split, counts in facts["summary"].items():
        fates = ("kept", "truncated", "dropped", "duplicate", "unused")
        sums = " + ".join(f"{counts[fate]:,} {fate}" for fate in fates if counts[fate])
        tokens = f"{counts['trained_tokens']:,} of {counts['tokens']:,} tokens trained"
        screen.say(f"{split}: {counts['rows']:,} rows = {sums}; {tokens}")
        for reason, number in list(counts["reasons"].items())[:5]:
            screen.say(f"  {number:,} x {reason}")
