"""One command for each training method, made from the methods' folder."""

from __future__ import annotations

import json as jsonlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunekit.cli.shared import AllowChange, Debug, Json, Overrides, Quiet, RecipePath, guard, make_plan, read_recipe
from tunekit.core.errors import UserError
from tunekit.core.registry import METHODS

if TYPE_CHECKING:
    from tunekit.plan.plan import Plan
    from tunekit.runs.record import Record

Processes = Annotated[
    int | None, typer.Option("--processes", "-n", min=1, help="Run on N processes (DDP).", metavar="N")
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Run folder; it must be new or empty.", metavar="DIR")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in that folder from its newest whole checkpoint.")
]


def register(app: typer.Typer) -> None:
    """Adds a command for every method."""
    for method in METHODS.names:
        help_line = METHODS.help(method)
        epilog = (
            f"Examples:\n\n[bold]tunekit {method} recipe.yaml[/bold]\n\n"
            f"[bold]tunekit {method} recipe.yaml --set train.learning_rate=1e-4 --set train.epochs=3[/bold]\n\n"
            f"[bold]tunekit {method} recipe.yaml --processes 2 --output runs/two[/bold]"
        )
        app.command(method, help=help_line, epilog=epilog, rich_help_panel="Train")(_command(method))


def _command(method: str) -> Callable[..., None]:
    def command(
        recipe: RecipePath,
        overrides: Overrides = None,
        processes: Processes = None,
        output: Output = None,
        resume: Resume = False,
        allow_change: AllowChange = None,
        quiet: Quiet = False,
        json: Json = False,
        debug: Debug = False,
    ) -> None:
        with guard(json=json, debug=debug):
            if allow_change and not resume:
                raise UserError("--allow-change is about a run that is gone on with", fix="add --resume")
            named = [*(overrides or []), *([f"output.dir={jsonlib.dumps(str(output))}"] if output is not None else [])]
            checked = read_recipe(recipe, method, named, processes)
            text = recipe.read_text(encoding="utf-8-sig")
            train(
                lambda: make_plan(checked, recipe, resume=resume),
                Request(recipe, text, resume, tuple(allow_change or ())),
                quiet=quiet,
                json=json,
            )

    return command


@dataclass(frozen=True)
class Request:
    """What the user asked for: the recipe's file and text (None keeps the run's own), and whether to go on."""

    recipe: Path
    text: str | None
    resume: bool
    allowed: tuple[str, ...]


def train(resolve: Callable[[], Plan], request: Request, *, quiet: bool, json: bool) -> None:
    """Resolves the plan, makes the run or goes on with it, and shows what came of it."""
    from tunekit.runs.screen import make_screen

    screen = make_screen(quiet=quiet, json=json)
    with screen.step("starting"):
        plan = resolve()
        from tunekit.train.pipeline import Job, claim, run
    if not request.resume:
        plan = claim(plan)
    options = ("--quiet",) if quiet else ("--json",) if json else ()
    record = run(Job(plan, request.text, options, request.resume, request.allowed), screen)
    _show(record, Path(plan.run_dir), quiet=quiet, json=json)


def _show(record: Record, folder: Path, *, quiet: bool, json: bool) -> None:
    from tunekit.runs.layout import RunFolder
    from tunekit.runs.screen import JsonScreen

    if json:
        JsonScreen().event("done", run=str(folder), record=record.model_dump(mode="json"))
    elif not quiet:
        from rich.console import Console

        from tunekit.runs.summary import console_summary

        following = [
            f"tunekit runs show {shlex.quote(str(folder))}",
            f"tunekit data preview {shlex.quote(str(folder))}",
            f"tunekit init {record.method} -o my.yaml",
        ]
        Console(highlight=False).print("", console_summary(record, RunFolder(folder), following), sep="\n")
