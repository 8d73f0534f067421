"""The verb prune: weights, channels or layers left out, and what that cost, measured on the artefact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tunekit.cli.shared import Debug, Json, Overrides, Quiet, guard
from tunekit.cli.smaller import Calib, MaxIncrease, MaxLoss, Rows, named_after, proof_keys, refuse_recipe
from tunekit.cli.stopping import stoppable
from tunekit.core.errors import UserError

Sparsity = Annotated[
    float | None, typer.Option("--sparsity", help="magnitude, wanda: share of weights that become zero.")
]
Pattern = Annotated[
    str | None, typer.Option("--pattern", help="magnitude, wanda: 2:4, or 4:8; in place of --sparsity.")
]
Size = Annotated[float | None, typer.Option("--size", help="channels: share of the feed-forward channels that stay.")]
Layers = Annotated[int | None, typer.Option("--layers", help="depth: so many layers go.")]
By = Annotated[str | None, typer.Option("--by", help="depth: cosine (default) or perplexity.")]
Heal = Annotated[
    Path | None,
    typer.Option("--heal", help="channels, depth: train by this recipe afterwards.", metavar="RECIPE.yaml"),
]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("prune", rich_help_panel="Hand on")(prune)


def prune(
    model: Annotated[
        str, typer.Argument(help="Run, adapter, model folder, Hub id or builtin:<name>.", metavar="MODEL")
    ],
    way: Annotated[str, typer.Option("--way", "-w", help="magnitude, wanda, channels or depth.")],
    sparsity: Sparsity = None,
    pattern: Pattern = None,
    size: Size = None,
    layers: Layers = None,
    by: By = None,
    heal: Heal = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New folder; default: MODEL-<the way>.", metavar="DIR")
    ] = None,
    calib: Calib = None,
    data: Rows = None,
    limit: MaxIncrease = None,
    loss: MaxLoss = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Prune a model: leave out what matters least, and measure what that cost.

    magnitude and wanda set weights to zero: files stay as large. channels and depth make a smaller, faster model of
    the same architecture, which a short training heals. One that is not sound, or worse than allowed, is not left
    behind: exit code 5.

    Example: [bold]tunekit prune runs/support --way depth --layers 4 --heal heal.yaml[/bold]

    Example: [bold]tunekit prune runs/support --way wanda --pattern 2:4 --max-ppl-increase 5%[/bold]
    """
    with guard(json=json, debug=debug), stoppable():
        named: dict[str, Any] = {"way": way, "sparsity": sparsity, "pattern": pattern, "size": size}
        named |= {"layers": layers, "by": by} | proof_keys(calib, data, limit, loss)
        refuse_recipe(model, "prune")
        wanted = _wanted(model, named, overrides or [])
        _run(wanted, output or named_after(model, way), heal, quiet=quiet, json=json)


def _run(wanted: Any, target: Path, heal: Path | None, *, quiet: bool, json: bool) -> None:
    from tunekit.runs.screen import JsonScreen, make_screen

    if heal is not None and not heal.is_file():
        raise UserError("there is no such recipe", where=f"--heal {heal}", fix="name a recipe of training")
    screen = make_screen(quiet=quiet, json=json)
    with screen.step("starting"):
        from tunekit.compress.prune.heal import Healing
        from tunekit.compress.prune.job import Job
        from tunekit.compress.prune.show import console
        from tunekit.compress.quantize import refuse_full
    refuse_full(target)
    record = Job(wanted, Path(), target, screen, Healing(heal) if heal is not None else None).run()
    if json:
        JsonScreen().event("done", folder=str(target), record=record)
    elif not quiet:
        from rich.console import Console

        Console(highlight=False).print("", console(record, target), sep="\n")


def _wanted(model: str, named: dict[str, Any], overrides: list[str]) -> Any:
    """The checked options."""
    from tunekit.compress.options import PROOF, document, in_words_of
    from tunekit.compress.prune.recipe import check

    own = {key: f"--{key}" for key in ("way", "sparsity", "pattern", "size", "layers", "by")}
    with in_words_of(own | PROOF, overrides):
        return check(document(model, named, overrides))
