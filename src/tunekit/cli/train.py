"""One command for each training method, made from the methods' folder."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunekit.cli.shared import Debug, Json, Overrides, Quiet, RecipePath, guard, make_plan, read_recipe
from tunekit.core.registry import METHODS

if TYPE_CHECKING:
    from tunekit.runs.record import Record

Processes = Annotated[
    int | None, typer.Option("--processes", "-n", min=1, help="Run on N processes (DDP).", metavar="N")
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Run folder; it must be new or empty.", metavar="DIR")
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
        quiet: Quiet = False,
        json: Json = False,
        debug: Debug = False,
    ) -> None:
        with guard(json=json, debug=debug):
            train(method, recipe, overrides, processes, output, quiet=quiet, json=json)

    return command


def train(
    method: str,
    path: Path,
    overrides: list[str] | None,
    processes: int | None,
    output: Path | None,
    *,
    quiet: bool,
    json: bool,
) -> None:
    """Reads the recipe, resolves the plan, makes the run and shows what came of it."""
    from tunekit.runs.screen import make_screen

    named = [*(overrides or []), *([f"output.dir={jsonlib.dumps(str(output))}"] if output is not None else [])]
    recipe = read_recipe(path, method, named, processes)
    screen = make_screen(quiet=quiet, json=json)
    with screen.step("starting"):
        plan = make_plan(recipe, path)
        from tunekit.train.pipeline import Job, run
    options = ("--quiet",) if quiet else ("--json",) if json else ()
    record = run(Job(plan, path.read_text(encoding="utf-8-sig"), options), screen)
    _show(record, Path(plan.run_dir), path, quiet=quiet, json=json)


def _show(record: Record, folder: Path, recipe: Path, *, quiet: bool, json: bool) -> None:
    from tunekit.runs.layout import RunFolder
    from tunekit.runs.screen import JsonScreen

    if json:
        JsonScreen().event("done", run=str(folder), record=record.model_dump(mode="json"))
    elif not quiet:
        from rich.console import Console

        from tunekit.runs.summary import console_summary

        following = [
            f"tunekit runs show {folder}",
            f"tunekit data preview {recipe}",
            f"tunekit init {record.method} -o my.yaml",
        ]
        Console(highlight=False).print("", console_summary(record, RunFolder(folder), following), sep="\n")
