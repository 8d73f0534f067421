"""Verbs about what is kept to save time, prepared data and answers of evaluations: why, list, clear."""

from __future__ import annotations

import shutil
import time
from typing import Annotated

import typer

from tunekit.cli.shared import Debug, Overrides, RecipePath, guard, read_recipe

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@app.command("why")
def why(recipe: RecipePath, overrides: Overrides = None, debug: Debug = False) -> None:
    """Tell whether a recipe's data is prepared, and otherwise which part changed.

    Example: [bold]tunekit data cache why recipe.yaml[/bold]
    """
    with guard(debug=debug):
        from tunekit.data import cache
        from tunekit.train.inputs import Inputs

        checked = read_recipe(recipe, None, overrides)
        key = Inputs(checked, recipe.parent).key
        found, nearest, changes = cache.why(key, cache.root())
        if found:
            typer.echo(f"prepared: {cache.root() / key.name}")
        elif nearest is None:
            typer.echo("not prepared, and nothing like it is")
        else:
            typer.echo(f"not prepared; compared with {nearest.folder.name} this changed:")
            for part, difference in changes:
                typer.echo(f"  {part} ({cache.PARTS[part]}): {difference}")


@app.command("list")
def list_(debug: Debug = False) -> None:
    """List what is kept, with sizes.

    Example: [bold]tunekit data cache list[/bold]
    """
    with guard(debug=debug):
        from tunekit.data import cache
        from tunekit.exam.answers import kept_answers, stores

        entries = cache.kept(cache.root())
        for entry in entries:
            files = [file["file"] for source in entry.parts["rows"]["train"] for file in source["files"]]
            age = (time.time() - entry.used) / 86_400
            typer.echo(f"{entry.folder.name}  {entry.size / 1e6:9.1f} MB  {age:5.1f} days  {', '.join(files[:3])}")
        typer.echo(f"{len(entries)} kept, {sum(entry.size for entry in entries) / 1e6:.1f} MB in {cache.root()}")
        references = cache.kept(cache.reference_root())
        if references:
            size = sum(entry.size for entry in references) / 1e6
            typer.echo(f"{len(references)} references of preference methods, {size:.1f} MB in {cache.reference_root()}")
        answers = stores()
        if answers:
            size, oldest = sum(one.size for one in answers) / 1e6, (time.time() - answers[-1].used) / 86_400
            typer.echo(
                f"{len(answers)} files of answers of evaluations, {size:.1f} MB, up to {oldest:.1f} days old in "
                f"{kept_answers()}"
            )


@app.command("clear")
def clear(
    days: Annotated[float, typer.Option("--older-than", min=0, help="Only what was not used for so many days.")] = 0.0,
    answers: Annotated[
        bool, typer.Option("--answers", help="The answers of models and the verdicts of judges, in place of data.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Delete kept data; it is prepared again when needed.

    Answers that `tunekit eval` keeps cost more than time where a server is paid for them: they go with --answers alone.

    Example: [bold]tunekit data cache clear --older-than 30[/bold]

    Example: [bold]tunekit data cache clear --answers[/bold]
    """
    with guard(debug=debug):
        from tunekit.data import cache
        from tunekit.exam.answers import stores

        if answers:
            old = [one for one in stores() if time.time() - one.used >= days * 86_400]
            for file in [file for one in old for file in one.files]:
                file.unlink(missing_ok=True)
            typer.echo(f"deleted {len(old)}, {sum(one.size for one in old) / 1e6:.1f} MB")
            return
        everything = [*cache.kept(cache.root()), *cache.kept(cache.reference_root())]
        entries = [entry for entry in everything if time.time() - entry.used >= days * 86_400]
        for entry in entries:
            shutil.rmtree(entry.folder)
        typer.echo(f"deleted {len(entries)}, {sum(entry.size for entry in entries) / 1e6:.1f} MB")
