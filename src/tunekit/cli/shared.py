"""What the commands share: options, the guard that turns errors into exit codes, and reading a recipe."""

from __future__ import annotations

import json as jsonlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunekit.core.errors import MachineError, Stopped, TunekitError, UserError

if TYPE_CHECKING:
    from tunekit.plan.plan import Plan
    from tunekit.recipe.schema import Recipe

RecipePath = Annotated[Path, typer.Argument(help="The recipe.", metavar="RECIPE.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        help="Override a key, for example [bold]--set train.learning_rate=1e-4[/bold].",
        metavar="KEY=VALUE",
    ),
]
AllowChange = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-change",
        help="Apply this key's new value to the run that is gone on with, for example "
        "[bold]--allow-change train.learning_rate[/bold].",
        metavar="KEY",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show only warnings and errors.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout, for programs.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class _Bug(TunekitError):
    exit_code = 1
    title = "a bug in tunekit"


@contextmanager
def guard(*, json: bool = False, debug: bool = False) -> Iterator[None]:
    """Shows an error as one block and ends with its exit code; an unforeseen one is called a bug, exit 1."""
    from tunekit.runs.screen import show_error

    try:
        yield
    except TunekitError as error:
        if debug:
            traceback.print_exc()
        show_error(error, json=json)
        raise typer.Exit(error.exit_code) from None
    except Stopped as stopped:
        _show_stop(stopped.told, stopped.exit_code, json=json)
        raise typer.Exit(stopped.exit_code) from None
    except KeyboardInterrupt:
        _show_stop("", 130, json=json)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        raise typer.Exit(0) from None
    except (MemoryError, OSError) as error:
        if debug:
            traceback.print_exc()
        where = str(getattr(error, "filename", None) or "")
        show_error(MachineError(f"{type(error).__name__}: {error}", where=where, fix="see `tunekit doctor`"), json=json)
        raise typer.Exit(4) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # noqa: BLE001 - the last resort of the program; never silent, exit 1
        if debug:
            traceback.print_exc()
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        what = f"{type(error).__name__}: {error}"
        show_error(_Bug(what, where=where, fix="run again with --debug and report it with the traceback"), json=json)
        raise typer.Exit(1) from None


def _show_stop(told: str, exit_code: int, *, json: bool) -> None:
    if json:
        from tunekit.runs.screen import JsonScreen

        JsonScreen().event("stopped", exit_code=exit_code, text=told)
    else:
        print("stopped" + (f": {told}" if told else ""), file=sys.stderr)


def read_recipe(path: Path, method: str | None, overrides: list[str] | None, processes: int | None = None) -> Recipe:
    """Reads and checks a recipe with its overrides; ``--processes`` is one of them."""
    from tunekit.recipe.load import load

    extra = [f"launch.processes={processes}"] if processes is not None else []
    return load(path, method=method, overrides=[*(overrides or []), *extra])


def recipe_or_run(path: Path, overrides: list[str] | None) -> tuple[Recipe, Path]:
    """The recipe of a file or of a run folder, with its overrides, and the folder where its data paths start.

    Raises:
        UserError: the folder is not that of a run, or the recipe is wrong.
    """
    if not path.is_dir():
        return read_recipe(path, None, overrides), path.parent
    from tunekit.plan.plan import Plan
    from tunekit.recipe.document import override, parse
    from tunekit.recipe.load import check

    saved = path / "plan.json"
    if not saved.exists():
        fix = "name a recipe, or a run folder; see `tunekit runs list`"
        raise UserError("this folder is not that of a run: there is no plan.json", where=str(path), fix=fix)
    plan = Plan.load(saved)
    text = jsonlib.dumps(plan.recipe.model_dump(mode="json"), indent=1)
    return check(override(parse(text, str(saved)), overrides or [])), Path(plan.recipe_folder)


def make_plan(recipe: Recipe, path: Path, *, resume: bool = False) -> Plan:
    """Looks at the run folder, then at the machine, and resolves the plan; imports torch."""
    from tunekit.plan.hardware import probe
    from tunekit.plan.resolve import resolve, run_folder

    folder = run_folder(recipe, path, resume=resume)
    return resolve(recipe, path, probe(), folder)
