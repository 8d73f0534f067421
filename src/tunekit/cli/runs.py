"""Verbs about runs: list, show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunekit.cli.shared import Debug, guard

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def _group() -> None:
    """Look at finished and running runs."""


@app.command("list")
def list_(
    root: Annotated[Path, typer.Argument(help="Folder with runs.", metavar="DIR")] = Path("runs"), debug: Debug = False
) -> None:
    """List runs, newest first.

    Example: [bold]tunekit runs list[/bold]
    """
    with guard(debug=debug):
        from rich.console import Console

        from tunekit.core.errors import UserError
        from tunekit.runs.table import runs_grid, runs_table

        if not root.is_dir() and root != Path("runs"):
            raise UserError("there is no such folder", where=str(root), fix="name the folder that holds the runs")

        Console(highlight=False).print(runs_grid(runs_table(root)))


@app.command("show")
def show(
    run: Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN")],
    report: Annotated[bool, typer.Option("--report", help="Write report.html anew from the record.")] = False,
    debug: Debug = False,
) -> None:
    """Show what a run did and what came of it.

    Example: [bold]tunekit runs show runs/quickstart[/bold]
    """
    with guard(debug=debug):
        from rich.console import Console

        from tunekit.runs.layout import RunFolder
        from tunekit.runs.report import write_report
        from tunekit.runs.table import run_details

        console = Console(highlight=False)
        for part in run_details(run):
            console.print(part)
        if report:
            typer.echo(f"wrote {write_report(RunFolder(run))}")
