"""Verbs about runs: list, show, compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunekit.cli.shared import Debug, guard

if TYPE_CHECKING:
    from rich.console import Console

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
    run: Annotated[Path, typer.Argument(help="A run folder, or that of an evaluation.", metavar="RUN")],
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
        if _show_evaluation(run, console, report=report):
            return
        for part in run_details(run):
            console.print(part)
        if report:
            typer.echo(f"wrote {write_report(RunFolder(run))}")


def _show_evaluation(folder: Path, console: Console, *, report: bool) -> bool:
    """Shows the folder if it is that of an evaluation."""
    from tunekit.exam import facts
    from tunekit.exam.report import write_report
    from tunekit.exam.show import console_evaluation

    if not facts.is_evaluation(folder):
        return False
    console.print(console_evaluation(facts.load(folder), folder))
    if report:
        typer.echo(f"wrote {write_report(folder)}")
    return True


@app.command("compare")
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Runs or evaluations, two or more.", metavar="A B [C ...]")],
    markdown: Annotated[bool, typer.Option("--markdown", help="As a Markdown table.")] = False,
    debug: Debug = False,
) -> None:
    """Put evaluations side by side, each compared with the first, row by row where they hold their rows.

    Example: [bold]tunekit runs compare evals/one evals/two[/bold]
    """
    with guard(debug=debug):
        from rich.console import Console

        from tunekit.core.errors import UserError
        from tunekit.exam.markdown import comparison_markdown
        from tunekit.exam.report_compare import compare_rows
        from tunekit.exam.show import ComparisonGrid

        if len(folders) < 2:
            raise UserError("one folder cannot be compared", where=str(folders[0]), fix="name two or more")
        found = compare_rows(folders)
        if markdown:
            typer.echo(comparison_markdown(found))
        else:
            Console(highlight=False).print(ComparisonGrid(found))
