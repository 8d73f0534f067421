"""Verbs about data: preview."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tunekit.cli.shared import Debug, Overrides, guard, recipe_or_run

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def _group() -> None:
    """Look at data as the model will see it."""


@app.command("preview")
def preview(
    recipe: Annotated[Path, typer.Argument(help="The recipe, or the folder of a run.", metavar="RECIPE.yaml|RUN")],
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option("--rows", "-r", min=1, help="How many rows.")] = 3,
    skip: Annotated[int, typer.Option("--skip", min=0, help="Begin after so many rows.")] = 0,
    debug: Debug = False,
) -> None:
    """Show rendered rows with the trained tokens coloured.

    Example: [bold]tunekit data preview recipe.yaml --rows 2[/bold]

    Example: [bold]tunekit data preview runs/recipe[/bold]
    """
    with guard(debug=debug):
        show(recipe, overrides, rows, skip)


def show(path: Path, overrides: list[str] | None, rows: int, skip: int) -> None:
    """Prints rows ``skip`` to ``skip + rows`` of the training sources."""
    from itertools import islice

    from rich.console import Console

    from tunekit.core.types import RowError
    from tunekit.data.preview import coloured, marked
    from tunekit.train.inputs import Inputs

    recipe, base = recipe_or_run(path, overrides)
    inputs = Inputs(recipe, base)
    inputs.look()
    console = Console(soft_wrap=True)
    for origin, example in islice(inputs.reader.examples(recipe.data.train), skip, skip + rows):
        if isinstance(example, str):
            console.print(f"{origin}  dropped: {example}", markup=False, highlight=False)
            continue
        try:
            rendered = inputs.fitter.renderer.render(example)
        except RowError as error:
            console.print(f"{origin}  dropped: {error}", markup=False, highlight=False)
            continue
        encoded = inputs.fitter.encoder.encode([rendered])[0]
        trained = sum(encoded.trained[1:])  # nothing precedes the first token
        head = f"{origin}  {len(encoded.input_ids)} tokens, {trained} trained (max_length {recipe.data.max_length})"
        console.print(head, style="bold", markup=False, highlight=False)
        if sys.stdout.isatty():
            console.print(coloured(encoded, inputs.tokenizer))
        else:
            print(marked(encoded, inputs.tokenizer))
        console.print()
