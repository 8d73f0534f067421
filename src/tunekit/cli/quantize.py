"""The verb quantize: a model in fewer bits, and what that cost, measured on the artefact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tunekit.cli.shared import Debug, Json, Overrides, Quiet, guard
from tunekit.cli.smaller import Calib, MaxIncrease, MaxLoss, Rows, named_after, proof_keys, show
from tunekit.cli.stopping import stoppable
from tunekit.core.errors import UserError

_KINDS = "such as --to nf4; `tunekit quantize --list` shows the kinds"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("quantize", rich_help_panel="Hand on")(quantize)


def quantize(
    model: Annotated[
        str | None,
        typer.Argument(help="Run, adapter, model folder, Hub id or builtin:<name>; or quantize.yaml.", metavar="MODEL"),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="Kinds, such as nf4,int8,gptq4,q4_k_m; `--list` shows them.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="New folder, of several kinds one each in it; default: MODEL-quantized."),
    ] = None,
    calib: Calib = None,
    data: Rows = None,
    limit: MaxIncrease = None,
    loss: MaxLoss = None,
    listed: Annotated[bool, typer.Option("--list", help="Show the kinds, and what each needs.")] = False,
    overrides: Overrides = None,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Quantize a model, and measure what it cost: perplexity, divergence, answers, size, memory, speed.

    Each artefact is loaded again in a fresh process by what its users load it with, and compared with the model of full
    precision; both do the tasks of the run's evaluation. One that is not sound, or worse than allowed, is not left
    behind: exit code 5.

    Example: [bold]tunekit quantize runs/support --to nf4[/bold]

    Example: [bold]tunekit quantize runs/support --to nf4,int8,gptq4,q4_k_m -o small --max-ppl-increase 2%[/bold]

    Example: [bold]tunekit quantize quantize.yaml --set seed=1[/bold]
    """
    with guard(json=json, debug=debug), stoppable("kinds that were finished stay, nothing else was written"):
        if listed:
            _list(json=json)
            return
        from tunekit.runs.screen import make_screen

        wanted, base = _recipe(model, _named(to, calib, data, limit, loss), overrides or [])
        target = output or Path(wanted.output.dir or named_after(wanted.model, "quantized"))
        screen = make_screen(quiet=quiet, json=json)
        with screen.step("starting"):
            from tunekit.compress import quantize as work
        work.refuse_full(target)
        try:
            made = work.Job(wanted, base, target, screen).run()
        finally:
            work.forget(target)
        show(made, target, quiet=quiet, json=json)


def _named(
    to: str | None, calib: list[str] | None, data: list[str] | None, limit: str | None, loss: str | None
) -> dict[str, Any]:
    """The options as keys of the recipe."""
    named = proof_keys(calib, data, limit, loss)
    if to is not None:
        named["to"] = [{"kind": word.strip()} for word in to.split(",") if word.strip()]
        if not named["to"]:
            raise UserError(f"'{to}' names no kind", where="--to", fix=_KINDS)
    return named


def _recipe(model: str | None, named: dict[str, Any], overrides: list[str]) -> tuple[Any, Path]:
    """The checked recipe, of a file or of options alone, and the folder where its paths start."""
    from tunekit.compress.options import PROOF, assigned, document, in_words_of
    from tunekit.compress.recipe import check, load

    if model is not None and model.endswith((".yaml", ".yml")):
        for key in ("calibration.data", "proof.data"):
            named[key] = [{"path": _from_here(source["path"])} for source in named[key]]
    if model is None:
        raise UserError("nothing says which model to quantize", where="MODEL", fix="tunekit quantize runs/x --to nf4")
    given = {key: value for key, value in named.items() if value not in (None, [])}
    with in_words_of({key: option for key, option in (PROOF | {"to": "--to"}).items() if key in given}, overrides):
        if model.endswith((".yaml", ".yml")):
            return load(Path(model), [*assigned(given), *overrides]), Path(model).parent
        if "to" not in named:
            raise UserError("nothing says what it shall become", where="--to", fix=_KINDS)
        return check(document(model, given, overrides)), Path()


def _from_here(path: str) -> str:
    """A path that starts in the working folder, wherever the recipe lies."""
    return str(Path.cwd() / path) if Path(path).exists() else path


def _list(*, json: bool) -> None:
    from tunekit.compress.show import kinds_words, known_kinds

    if json:
        from tunekit.runs.screen import JsonScreen

        JsonScreen().event("kinds", kinds=known_kinds())
        return
    from rich.console import Console

    Console(highlight=False).print(kinds_words(known_kinds()))
