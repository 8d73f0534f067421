"""Joins the rooms: plan -> data -> model -> trainer -> record -> report. Every method goes through here."""

from __future__ import annotations

import shlex
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core import startup
from tunekit.core.errors import DataError, MachineError, Stopped, TunekitError, UserError
from tunekit.core.files import write_atomic
from tunekit.core.progress import Screen
from tunekit.data.prepare import Prepared
from tunekit.data.sources import is_hub
from tunekit.model.names import resolve_name
from tunekit.plan.plan import Plan
from tunekit.recipe.kinds import material_of
from tunekit.runs.card import Card, write_card
from tunekit.runs.environment import git_state, library_versions
from tunekit.runs.layout import RunFolder
from tunekit.runs.lock import RunLock
from tunekit.runs.record import ProgressPart, Record, ResumePart, read_record, write_record
from tunekit.runs.report import write_report
from tunekit.runs.table import progress_of
from tunekit.runs.wording import now_utc
from tunekit.train.inputs import Inputs, planned_steps, said_of_rows
from tunekit.train.signals import StopRequest, stop_signals

if TYPE_CHECKING:
    from tunekit.train.resume import Resumption


@dataclass(frozen=True)
class Job:
    """A run to be made, or to be gone on with.

    Args:
        plan: the resolved plan.
        recipe_text: the recipe as the user wrote it, kept with the run; None keeps what is there.
        screen_options: ``--quiet`` or ``--json`` for the processes of a launch.
        resume: go on with the run in the plan's folder; begin when there is none.
        allowed: the keys that may have changed since its checkpoint.
    """

    plan: Plan
    recipe_text: str | None
    screen_options: tuple[str, ...] = ()
    resume: bool = False
    allowed: tuple[str, ...] = ()


def claim(plan: Plan) -> Plan:
    """Makes the run folder. A numbered one that another run made in the meantime is left to it, and the next taken.

    Raises:
        TunekitError: there is no data or model where the recipe says; nothing has been made.
    """
    Inputs(plan.recipe, Path(plan.recipe_folder)).look()
    if plan.recipe.output.dir is not None:
        Path(plan.run_dir).mkdir(parents=True, exist_ok=True)
        return plan
    first, number = Path(plan.run_dir), 1
    folder = first
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
            folder = first.with_name(f"{first.name}-{number}")
        else:
            return plan.model_copy(update={"run_dir": str(folder)})


def run(job: Job, screen: Screen) -> Record:
    """Makes a run: prepares data, trains, evaluates, saves, and writes record and report, also when it fails.

    Raises:
        TunekitError: of the kind that fits the cause; the record says so too. A run that is refused (UserError,
            DataError) before its first step leaves no folder.
        Stopped: somebody asked it to end.
    """
    from tunekit.train.resume import is_run, make_ready

    folder = RunFolder(Path(job.plan.run_dir))
    if job.resume and not is_run(folder):  # it begins: before there is a folder, as in `claim`
        Inputs(job.plan.recipe, Path(job.plan.recipe_folder)).look()
    folder.path.mkdir(parents=True, exist_ok=True)
    with RunLock(folder.path, screen.say), stop_signals() as stop:
        resumed = _resumed(job, folder, screen)
        if resumed is not None:
            if resumed.finished:
                screen.say("this run is finished, and nothing has changed since: there is nothing to do")
                write_report(folder)  # the run may have been cut off before it was written
                return read_record(folder)
            make_ready(resumed, folder, screen)
            job = replace(job, plan=resumed.plan)
        before = {path: path.read_bytes() for path in (folder.plan, folder.recipe, folder.record) if path.exists()}
        job.plan.save(folder.plan)  # first: from here on the folder is that of a run
        if job.recipe_text is not None:
            write_atomic(folder.recipe, job.recipe_text)
        record = _opening(job.plan, folder, resumed)
        write_record(folder, record)
        made = _Made(record)
        try:
            _make(job, folder, made, screen, resumed, stop)
        except BaseException as error:
            if resumed is not None and isinstance(error, UserError):  # refused: the run is what it was
                for path, content in before.items():
                    write_atomic(path, content)
                raise
            if resumed is None and isinstance(error, (UserError, DataError)) and not _begun(folder, made.record):
                shutil.rmtree(folder.path)  # refused before the first step: there is nothing to go on with
                raise
            record = _ended_by(made.record, error)
            write_record(folder, record.updated(progress=progress_of(folder, record)))
            write_report(folder)
            if record.status == "failed":
                screen.say(f"how far it came, and how it goes on: tunekit runs show {shlex.quote(str(folder.path))}")
            raise
        record = made.record.ended("done", 0).updated(progress=None)
        write_record(folder, record)
        write_report(folder)
        return record


def _begun(folder: RunFolder, record: Record) -> bool:
    """Whether a step was done."""
    return progress_of(folder, record).step > 0


def _resumed(job: Job, folder: RunFolder, screen: Screen) -> Resumption | None:
    """How the run is gone on with; None when it begins."""
    from tunekit.train.resume import clear, is_run, resumption

    if not job.resume:
        if any(path.name != ".lock" for path in folder.path.iterdir()):
            raise UserError(
                "the run folder is not empty",
                where=str(folder.path),
                fix="go on with the run by --resume, or name another folder",
            )
        return None
    begun = is_run(folder)
    resumed = resumption(job.plan, folder, job.allowed, screen)
    clear(folder)
    if not begun:
        screen.say("nothing to resume here yet: the run begins")
        return None
    if not resumed.finished:
        found = resumed.checkpoint
        where = f"going on from {found.folder.name}" if found else "no checkpoint yet: the run begins anew"
        screen.say("\n".join([where, *(f"  changed since: {line}" for line in resumed.words())]))
    return resumed


@dataclass
class _Made:
    """The record as far as the run has come; a failure writes what is known by then."""

    record: Record


def _ended_by(record: Record, error: BaseException) -> Record:
    if isinstance(error, Stopped):
        return record.ended("stopped", error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return record.ended("stopped", 130)
    if isinstance(error, TunekitError):
        return record.ended("failed", error.exit_code, error)
    if isinstance(error, (OSError, MemoryError)):
        return record.ended("failed", MachineError.exit_code, MachineError(f"{type(error).__name__}: {error}"))
    return record.ended("failed", 1, TunekitError(f"{type(error).__name__}: {error}"))


def _opening(plan: Plan, folder: RunFolder, resumed: Resumption | None) -> Record:
    before = read_record(folder) if resumed is not None and folder.record.exists() else None
    earlier = before.resumed if before else ()
    if resumed is not None:
        earlier = (*earlier, ResumePart(at=now_utc(), step=resumed.step, changes=resumed.words()))
    machine = plan.hardware
    hardware: dict[str, Any] = {
        "processor": machine.cpu,
        "cores": machine.cores,
        "memory_gb": round(machine.memory / 1e9, 1),
        "gpus": [{"name": gpu.name, "memory_gb": round(gpu.memory / 1e9, 1)} for gpu in machine.gpus],
    }
    return Record(
        method=plan.method,
        created=before.created if before else now_utc(),
        resumed=earlier,
        versions=library_versions(),
        hardware=hardware | {"processes": plan.processes, "threads": plan.threads, "precision": plan.precision},
        git=git_state(Path.cwd()),
        seeds={"train": plan.recipe.train.seed},
        plan_hash=plan.hash,
    )


def _make(
    job: Job, folder: RunFolder, made: _Made, screen: Screen, resumed: Resumption | None, stop: StopRequest
) -> None:
    from tunekit.train.logs import library_logs_to
    from tunekit.train.resume import check_data

    plan = job.plan
    hub = hub_names(plan)  # now: at the end what is local may have been moved
    with library_logs_to(folder.log):
        started = time.perf_counter()
        inputs = Inputs(plan.recipe, Path(plan.recipe_folder))
        prepared = inputs.prepare(screen, folder.path / "data")
        if resumed is not None:
            check_data(resumed, inputs.identity(prepared), inputs.parts)
        shutil.copyfile(prepared.ledger_path, folder.ledger)
        seconds = {"preparing": round(time.perf_counter() - started, 3)}
        progress = ProgressPart(planned_steps=planned_steps(plan, prepared.facts))
        made.record = made.record.updated(data=_data_part(prepared), seconds=seconds, progress=progress)
        write_record(folder, made.record)
        for line in said_of_rows(prepared.facts, material_of(plan.recipe)):
            screen.say(line)
        checkpoint = resumed.checkpoint.folder if resumed is not None and resumed.checkpoint is not None else None
        outcome = _trained(job, folder, prepared, screen, checkpoint, stop)
    made.record = made.record.updated(
        data=outcome.data or made.record.data,
        model=outcome.model,
        training=outcome.training,
        evaluation=outcome.evaluation,
        seconds=made.record.seconds | outcome.seconds,
        artefact=folder.model.name,
        plan_hash=Plan.load(folder.plan).hash,  # `micro_batch_size: auto` was settled since
    )
    write_card(Card(folder, made.record.ended("done", 0), Plan.load(folder.plan), hub))


def hub_names(plan: Plan) -> frozenset[str]:
    """Those of the recipe's names (model, tokenizer, data) that are Hub ids."""
    data, model = plan.recipe.data, plan.recipe.model
    sources = [*data.train, *(data.eval if isinstance(data.eval, tuple) else ())]
    named = {source.path for source in sources if is_hub(source, Path(plan.recipe_folder))}
    if resolve_name(model.name).kind == "hub":
        named.add(model.name)
    if model.tokenizer is not None and resolve_name(model.tokenizer, "model.tokenizer").kind == "hub":
        named.add(model.tokenizer)
    return frozenset(named)


def _trained(
    job: Job, folder: RunFolder, prepared: Prepared, screen: Screen, checkpoint: Path | None, stop: StopRequest
) -> Any:
    if job.plan.processes > 1:
        from tunekit.train.launch import launch

        return launch(job.plan, folder.plan, prepared.folder, list(job.screen_options), stop, checkpoint)
    from tunekit.train.session import Session

    startup.load_to_stay("transformers.trainer")

    return Session(job.plan, prepared, screen, stop=stop, checkpoint=checkpoint).run()


def _data_part(prepared: Prepared) -> dict[str, Any]:
    facts = prepared.facts
    return {"fingerprint": facts["fingerprint"], "splits": facts["summary"]}
