"""The `tunekit` program: puts the families of verbs together."""

from __future__ import annotations

from typing import Annotated

import typer

import tunekit
from tunekit.cli import (
    adapters,
    cache,
    data,
    doctor,
    evaluate,
    export,
    merge,
    prune,
    push,
    quantize,
    recipe,
    resume,
    runs,
    train,
)
from tunekit.core import startup

app = typer.Typer(
    name="tunekit",
    help="Fine-tune Hugging Face models, and trust the result.\n\n"
    "Start with [bold]tunekit init sft -o recipe.yaml[/bold], then [bold]tunekit sft recipe.yaml[/bold].",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tunekit {tunekit.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the program itself."""


data.app.add_typer(
    cache.app, name="cache", help="See, explain or delete the prepared data that is kept for the next run."
)
train.register(app)
resume.register(app)
recipe.register(app)
adapters.register(app)
evaluate.register(app)
app.add_typer(
    data.app, name="data", help="Look at data as the model will see it.", rich_help_panel="Look before you train"
)
app.add_typer(runs.app, name="runs", help="Look at finished and running runs.", rich_help_panel="Look back")
push.register(app)
merge.register(app)
quantize.register(app)
prune.register(app)
export.register(app)
doctor.register(app)


def main() -> None:
    """The console entry point."""
    startup.begin()
    app()
