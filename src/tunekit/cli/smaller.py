"""What the verbs that make a smaller model share: quantize, prune, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunekit.core.errors import Problem, UserError, raise_all

if TYPE_CHECKING:
    from tunekit.compress.made import Made

Calib = Annotated[
    list[str] | None,
    typer.Option("--calib", help="Rows that gptq, wanda and their kin look at; default: the run's training data."),
]
Rows = Annotated[
    list[str] | None, typer.Option("--data", "-d", help="Rows to measure on; default: the run's held-out rows.")
]
MaxIncrease = Annotated[
    str | None, typer.Option("--max-ppl-increase", help="Refuse where perplexity rises by more, such as 2%.")
]
MaxLoss = Annotated[
    str | None, typer.Option("--max-score-loss", help="Refuse where a task's score falls by more, such as 2%.")
]


def proof_keys(calib: list[str] | None, data: list[str] | None, limit: str | None, loss: str | None) -> dict[str, Any]:
    """The options above as keys of a recipe.

    Raises:
        UserError: a limit is no share.
    """
    named: dict[str, Any] = {"calibration.data": _sources(calib), "proof.data": _sources(data)}
    if limit is not None:
        named["proof.max_ppl_increase"] = _share(limit, "--max-ppl-increase")
    if loss is not None:
        named["proof.max_score_loss"] = _share(loss, "--max-score-loss", most=1)
    return named


def _sources(paths: list[str] | None) -> list[dict[str, str]]:
    return [{"path": path} for path in paths or []]


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


def _share(text: str, option: str, *, most: float = 100) -> float:
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
