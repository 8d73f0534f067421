"""The verb resume: go on with a run that was stopped, killed or cut off."""

from __future__ import annotations

import json as jsonlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunekit.cli.shared import AllowChange, Debug, Json, Overrides, Quiet, guard
from tunekit.cli.train import Processes, Request, train
from tunekit.core.errors import UserError

if TYPE_CHECKING:
    from tunekit.plan.plan import Plan


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("resume", rich_help_panel="Train")(resume)


def resume(
    run: Annotated[Path, typer.Argument(help="The run folder.", metavar="RUN")],
    overrides: Overrides = None,
    allow_change: AllowChange = None,
    processes: Processes = None,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Go on with a run that was stopped or cut off, from its newest whole checkpoint.

    The result is the same as if it had never been interrupted. What has changed since is shown; a change that would
    change the result is refused until --allow-change names it.

    Example: [bold]tunekit resume runs/recipe[/bold]

    Example: [bold]tunekit resume runs/recipe --set train.learning_rate=1e-5 --allow-change train.learning_rate[/bold]
    """
    with guard(json=json, debug=debug):
        named = [*(overrides or []), *([f"launch.processes={processes}"] if processes is not None else [])]
        plan = _plan_of(run, named)
        request = Request(run / "recipe.yaml", None, True, tuple(allow_change or ()))
        train(lambda: _on_this_machine(plan, run), request, quiet=quiet, json=json)


def _plan_of(run: Path, overrides: list[str]) -> Plan:
    """The run's own plan with the recipe's keys overridden."""
    from tunekit.plan.plan import Plan
    from tunekit.recipe.document import override, parse
    from tunekit.recipe.load import check

    path = run / "plan.json"
    if not path.exists():
        raise UserError("not a run folder: there is no plan.json", where=str(run), fix="see `tunekit runs list`")
    plan = Plan.load(path)
    text = jsonlib.dumps(plan.recipe.model_dump(mode="json"), indent=1)
    recipe = check(override(parse(text, str(path)), overrides))
    return plan.model_copy(update={"recipe": recipe})


def _on_this_machine(plan: Plan, run: Path) -> Plan:
    from tunekit.plan.hardware import probe
    from tunekit.plan.resolve import resolve

    return resolve(plan.recipe, Path(plan.recipe_folder) / "recipe.yaml", probe(), os.path.relpath(run))
