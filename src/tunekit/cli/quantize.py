"""The verb quantize: a model in fewer bits, and what that cost, measured on the artefact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunekit.cli.shared import Debug, Json, Overrides, Quiet, guard
from tunekit.cli.stopping import stoppable
from tunekit.core.errors import Problem, UserError, raise_all

if TYPE_CHECKING:
    from tunekit.compress.made import Made

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
    calib: Annotated[
        list[str] | None,
        typer.Option("--calib", help="Rows that gptq and its kin look at; default: the run's training data."),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", "-d", help="Rows to measure on; default: the run's held-out rows.")
    ] = None,
    limit: Annotated[
        str | None, typer.Option("--max-ppl-increase", help="Refuse where perplexity rises by more, such as 2%.")
    ] = None,
    loss: Annotated[
        str | None, typer.Option("--max-score-loss", help="Refuse where a task's score falls by more, such as 2%.")
    ] = None,
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
    named: dict[str, Any] = {"calibration.data": sources(calib), "proof.data": sources(data)}
    if to is not None:
        named["to"] = [{"kind": word.strip()} for word in to.split(",") if word.strip()]
        if not named["to"]:
            raise UserError(f"'{to}' names no kind", where="--to", fix=_KINDS)
    if limit is not None:
        named["proof.max_ppl_increase"] = share(limit, "--max-ppl-increase")
    if loss is not None:
        named["proof.max_score_loss"] = share(loss, "--max-score-loss", most=1)
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


def refuse_recipe(model: str, verb: str) -> None:
    """Refuses a recipe where a model is wanted.

    Raises:
        UserError: with what this verb takes.
    """
    if model.endswith((".yaml", ".yml")) and Path(model).is_file():
        raise UserError("this is a recipe, and a model is wanted here", where=model,
                        fix=f"all of it is said by options: tunekit {verb} --help")  # fmt: skip


def sources(paths: list[str] | None) -> list[dict[str, str]]:
    """Files named on the command line, as sources of a recipe."""
    return [{"path": path} for path in paths or []]


def _from_here(path: str) -> str:
    """A path that starts in the working folder, wherever the recipe lies."""
    return str(Path.cwd() / path) if Path(path).exists() else path


def share(text: str, option: str, *, most: float = 100) -> float:
    """``2%`` or ``0.02`` as 0.02; what is 1 or more has its per cent sign.

    Raises:
        UserError: it is neither, or more than ``most``.
    """
    try:
        value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most or (value >= 1 and not text.endswith("%")):
        raise UserError(f"'{text}' is no share", where=option, fix="such as 2% or 0.02")
    return value


def named_after(model: str, what: str) -> Path:
    """Where an artefact of a model goes when nothing else is said: beside its folder, or in the working folder."""
    path = Path(model).expanduser()
    if not path.is_dir():
        return Path(f"{Path(model.removeprefix('builtin:')).name}-{what}")
    path = path if path.name not in ("", "..") else path.resolve()
    return path.with_name(f"{path.name}-{what}")


def _list(*, json: bool) -> None:
    from tunekit.compress.show import kinds_words, known_kinds

    if json:
        from tunekit.runs.screen import JsonScreen

        JsonScreen().event("kinds", kinds=known_kinds())
        return
    from rich.console import Console

    Console(highlight=False).print(kinds_words(known_kinds()))


def show(made: list[Made], folder: Path, *, quiet: bool, json: bool, use: str | None = None) -> None:
    """Tells what came of it, and of several kinds writes the report; that of one lies in its artefact.

    Args:
        made: the kinds.
        folder: what was written.
        quiet: nothing on the screen.
        json: one line of JSON.
        use: the command that serves it, where that is not known from the kind.

    Raises:
        TunekitError: the kinds that were refused, of the first one's sort.
    """
    from tunekit.compress import show as words
    from tunekit.compress.report import REPORT, write_report

    alone = len(made) == 1 and made[0].folder == folder
    report = folder / REPORT if alone else write_report(folder, made) if folder.is_dir() else None
    if json:
        from tunekit.runs.screen import JsonScreen

        kinds = [{"kind": one.kind, "folder": None if one.error else str(one.folder), "record": one.record,
                  "refused": str(one.error) if one.error else None} for one in made]  # fmt: skip
        JsonScreen().event("done", folder=str(folder), kinds=kinds)
    elif not quiet:
        from rich.console import Console

        Console(highlight=False).print("", words.console(made, folder, report, use), sep="\n")
    refused = [(one.kind, one.error) for one in made if one.error is not None]
    if refused:
        problems = [Problem(f"{kind}: {each.what}", each.where, each.fix) for kind, error in refused
                    for each in error.problems]  # fmt: skip
        raise_all(type(refused[0][1]), problems)
