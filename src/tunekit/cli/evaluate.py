"""The verb eval: what a model can do, what tuning changed, and how sure that is."""

from __future__ import annotations

import glob
import json as jsonlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunekit.cli.shared import Debug, Json, Overrides, Quiet, guard
from tunekit.core.errors import MachineError, Stopped, UserError

if TYPE_CHECKING:
    from tunekit.exam.facts import ExamRecord


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("eval", rich_help_panel="Measure")(evaluate)


def evaluate(
    recipe: Annotated[Path | None, typer.Argument(help="What to evaluate and how.", metavar="[EVAL.yaml]")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Run, adapter, model folder, Hub id or builtin:<name>.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", "-b", help="base (what it was trained from), another model, or none.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", "-d", help="File of rows; default: the run's held-out rows.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option("--tasks", "-t", help="Kinds, such as generation,perplexity,harness:piqa.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", help="What scores generated answers, such as exact_match,rouge.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many rows a task.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New folder; default: evals/<model's name>, numbered.")
    ] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Evaluate a model, beside the one it was trained from, with intervals and a verdict.

    Every answer is kept: what was cut off goes on where it was, and nothing is computed twice.

    Example: [bold]tunekit eval --model runs/support[/bold]

    Example: [bold]tunekit eval --model runs/support --data test.jsonl --metrics exact_match,rouge[/bold]

    Example: [bold]tunekit eval eval.yaml --set limit=100[/bold]
    """
    with guard(json=json, debug=debug):
        from tunekit.runs.screen import make_screen

        named: dict[str, Any] = {"model": model, "baseline": baseline, "limit": limit}
        if data:
            named["data"] = [{"path": path} for path in data]
        if tasks or metrics:
            named["tasks"] = _tasks(tasks, metrics)
        if output is not None:
            named["output.dir"] = str(output)
        exam, base = _recipe(recipe, named, overrides or [])
        screen = make_screen(quiet=quiet, json=json)
        with _stoppable(), _reserved(exam) as target:
            with screen.step("starting"):
                from tunekit.exam.job import Job
            record = Job(exam, base, target, screen).run()
        _show(record, target, quiet=quiet, json=json)


def _recipe(path: Path | None, named: dict[str, Any], overrides: list[str]) -> tuple[Any, Path]:
    """The checked recipe, of a file or of options alone, and the folder where its paths start.

    Paths given as options start in the working folder: they are made so that they are found from the file's.
    """
    from tunekit.exam.recipe import check, load
    from tunekit.recipe.document import override, parse

    if path is not None:
        named |= {"data": [{"path": _from_here(source["path"])} for source in named["data"]]} if "data" in named else {}
    given = [f"{key}={jsonlib.dumps(value)}" for key, value in named.items() if value is not None]
    if path is not None:
        return load(path, [*given, *overrides]), path.parent
    if named["model"] is None:
        fix = "tunekit eval --model runs/x, or tunekit eval eval.yaml"
        raise UserError("nothing says which model to evaluate", where="--model", fix=fix)
    text = f"model: {jsonlib.dumps(named['model'])}\n"
    return check(override(parse(text, "options"), [*given, *overrides])), Path()


def _tasks(tasks: str | None, metrics: str | None) -> list[dict[str, Any]]:
    """Blocks for names: kinds of task, ``harness:NAME``, and generation where metrics are named."""
    from tunekit.evaluate.measured import expanded

    found: list[dict[str, Any]] = []
    for word in filter(None, (part.strip() for part in (tasks or "").split(","))):
        kind, _, rest = word.partition(":")
        if kind == "harness" and rest:
            known = next((block for block in found if block["kind"] == "harness"), None)
            if known is None:
                known = {"kind": "harness"}
                found.append(known)
            known.setdefault("tasks", []).append(rest)
        else:
            found.append({"kind": word})
    if metrics is not None:
        names = expanded([name.strip() for name in metrics.split(",") if name.strip()])
        asking = [block for block in found if block["kind"] in ("generation", "questions")]
        if not asking:
            asking = [{"kind": "generation"}]
            found += asking
        for block in asking:
            block["metrics"] = names
    return found


def _from_here(path: str) -> str:
    """A path of the working folder so that it is found from anywhere; what is not there may be of the Hub."""
    return str(Path.cwd() / path) if Path(path).exists() or glob.glob(path) else path  # noqa: PTH207 (patterns too)


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, and both say that nothing is lost."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped(signum, "the answers so far are kept: the same command goes on from there")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _reserved(exam: Any) -> Iterator[Path]:
    """Where the evaluation is written: the named folder, or evals/<name>, numbered.

    A numbered one is made at once, so that two evaluations at the same time get one each; it goes when the block fails.

    Raises:
        UserError: the named folder is not empty.
        MachineError: it cannot be written.
    """
    if exam.output.dir is not None:
        yield _named(Path(exam.output.dir))
        return
    first = folder = Path("evals") / _name(exam.model)
    made = not first.parent.exists()
    number = 1
    first.parent.mkdir(exist_ok=True)
    while True:
        try:
            folder.mkdir()
            break
        except FileExistsError:
            number += 1
            folder = first.with_name(f"{first.name}-{number}")
    try:
        yield folder
    except BaseException:
        with suppress(OSError):  # another evaluation may have its folder there by now
            folder.rmdir()
            if made:
                first.parent.rmdir()
        raise


def _named(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        fix = "name another folder, or remove this one"
        raise UserError(f"the output folder '{folder}' is not empty", where="output.dir", fix=fix)
    above = next(place for place in folder.absolute().parents if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise MachineError(f"nothing can be written in '{above}'", where="output.dir", fix="name another folder")
    return folder


def _name(model: str) -> str:
    """What an evaluation of a model is called: as the model, or the run that it is of."""
    path = Path(model).expanduser()
    if not path.is_dir():
        return Path(model.partition("?")[0].removeprefix("builtin:").rstrip("/")).name or "model"
    path = path.resolve()
    return (path.parent if (path.parent / "plan.json").exists() else path).name or "model"


def _show(record: ExamRecord, folder: Path, *, quiet: bool, json: bool) -> None:
    if json:
        from tunekit.runs.screen import JsonScreen

        JsonScreen().event("done", evaluation=str(folder), record=record.model_dump(mode="json"))
    elif not quiet:
        from rich.console import Console

        from tunekit.exam.show import console_evaluation

        Console(highlight=False).print("", console_evaluation(record, folder), sep="\n")
