"""Verbs about data: preview."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunekit.cli.shared import Debug, Overrides, guard, recipe_or_run

if TYPE_CHECKING:
    from rich.console import Console

    from tunekit.core.types import Encoded, Example, Learnt
    from tunekit.train.inputs import Inputs

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

    from tunekit.core.types import Example
    from tunekit.train.inputs import Inputs

    recipe, base = recipe_or_run(path, overrides)
    inputs = Inputs(recipe, base)
    inputs.look()
    console = Console(soft_wrap=True)
    for origin, learnt in islice(inputs.reader.learnt(recipe.data.train), skip, skip + rows):
        if isinstance(learnt, str):
            reason = learnt
        elif isinstance(learnt, Example):
            reason = _show_text(console, inputs, str(origin), learnt)
        else:
            reason = _show_group(console, inputs, str(origin), learnt)
        if reason:
            console.print(f"{origin}  dropped: {reason}", markup=False, highlight=False)


def _show_text(console: Console, inputs: Inputs, origin: str, example: Example) -> str:
    """Prints a text or a conversation; returns the reason when it cannot be rendered."""
    found = inputs.fitter.tokenized([example])[0]
    if isinstance(found, str):
        return found
    encoded = found[1]
    trained = sum(encoded.trained[1:])  # nothing precedes the first token
    limit = inputs.recipe.data.max_length
    _print_head(console, f"{origin}  {len(encoded.input_ids)} tokens, {trained} trained (max_length {limit})")
    _print_tokens(console, inputs, encoded)
    console.print()
    return ""


def _show_group(console: Console, inputs: Inputs, origin: str, learnt: Learnt) -> str:
    """Prints the prompt of a row and its answers, each pair by itself; returns the reason when there are none."""
    from tunekit.data.preview import parts

    found = inputs.fitter.uncut().encode([learnt])[0]
    if isinstance(found, str) or found.lost:
        return found if isinstance(found, str) else ": ".join(filter(None, (found.lost, found.detail)))
    if found.partly:
        _print_head(console, f"{origin}  some of its answers cannot be used: {found.partly}")
    for number, row in enumerate(found.examples, start=1):
        shown = parts(row, inputs.fitter.material)
        words = [f" {number} of {len(found.examples)}"] if len(found.examples) > 1 else []
        words += [f"{part.title}: {part.size}" for part in shown]
        words += [f"margin {row['score']:g}"] if row["score"] is not None and len(shown) > 2 else []
        _print_head(console, f"{origin}  {'; '.join(words)} (max_length {inputs.recipe.data.max_length})")
        for part in shown:
            _print_head(console, f"{part.title}:")
            _print_tokens(console, inputs, part.encoded, part.begin)
        if inputs.fitter.material == "prompts" and row["reference"]:
            _print_head(console, "reference:")
            console.print(row["reference"], markup=False, highlight=False)
        console.print()
    return ""


def _print_head(console: Console, words: str) -> None:
    console.print(words, style="bold", markup=False, highlight=False)


def _print_tokens(console: Console, inputs: Inputs, encoded: Encoded, begin: int = 0) -> None:
    from tunekit.data.preview import coloured, marked

    if sys.stdout.isatty():
        console.print(coloured(encoded, inputs.tokenizer, begin))
    else:
        print(marked(encoded, inputs.tokenizer, begin))
