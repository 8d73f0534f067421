"""The verb merge: an adapter becomes part of its base's weights, and that it did is proven."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunekit.cli.shared import Debug, Json, Quiet, guard
from tunekit.cli.stopping import stoppable
from tunekit.core.errors import TunekitError, UserError

if TYPE_CHECKING:
    from rich.console import RenderableType


DTYPES = ("float32", "bfloat16", "float16")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("merge", rich_help_panel="Hand on")(merge)


def merge(
    run: Annotated[Path, typer.Argument(help="A run folder, or that of an adapter.", metavar="RUN")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New folder of the merged model; default: RUN/merged.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16 or float16; default: the base's own.")
    ] = None,
    combine: Annotated[
        list[Path] | None,
        typer.Option("--combine", help="Weigh this LoRA run or adapter in; may be given again.", metavar="RUN"),
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="One for each adapter, RUN's first, such as 0.7,0.3; default: 1.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="cat (the exact sum; default), svd, linear, ties, dare_linear, dare_ties, ..."),
    ] = None,
    density: Annotated[
        float | None, typer.Option("--density", min=0, max=1, help="Part of the values that ties and dare keep.")
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="Rank of what svd makes.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of what dare drops; default: 0.")] = None,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Merge an adapter into its base's weights, and prove the result in a fresh process.

    A plain Hugging Face folder comes of it, or nothing: when the merged model does not give what the adapter on its
    base gives, the command ends with exit code 5.

    Example: [bold]tunekit merge runs/support[/bold]

    Example: [bold]tunekit merge runs/a --combine runs/b --weights 0.7,0.3 --output both[/bold]
    """
    with guard(json=json, debug=debug), stoppable():
        from tunekit.runs.screen import JsonScreen, make_screen

        if dtype is not None and dtype not in DTYPES:
            raise UserError(f"there is no type '{dtype}' to merge into", where="--dtype", fix=", ".join(DTYPES))
        screen = make_screen(quiet=quiet, json=json)
        with screen.step("starting"):
            from tunekit.compress.combine import Combination
            from tunekit.compress.merge import Request
            from tunekit.compress.merge import merge as merge_adapter
        parts = _numbers(weights)
        combination = None
        if combine:
            combination = Combination(tuple(combine), parts, method or "cat", density, rank, seed)
        else:
            _refuse_alone(weights=weights, method=method, density=density, rank=rank, seed=seed)
        folder = output or run / "merged"
        proof = merge_adapter(Request(run, folder, dtype, lambda: _held_out(run), combination), screen)
        if json:
            JsonScreen().event("done", folder=str(folder), proof=proof)
        elif not quiet:
            _show(proof, folder)


def _refuse_alone(**options: object) -> None:
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        what = f"{', '.join(given)}: only about several adapters"
        raise UserError(what, where=given[0], fix="name the others with --combine")


def _show(proof: dict[str, Any], folder: Path) -> None:
    from rich.console import Console

    from tunekit.runs.summary import pairs

    load = f"AutoModelForCausalLM.from_pretrained({str(folder)!r})"
    facts = pairs([("model", str(folder)), ("proof", str(folder / "merge.json")), ("load", load)])
    Console(highlight=False).print("", table(proof), "", facts, sep="\n")


def _numbers(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text is not None else ()
    except ValueError:
        raise UserError(f"'{text}' is no list of numbers", where="--weights", fix="such as 0.7,0.3") from None


def _held_out(run: Path) -> Sequence[Any]:
    """The run's own held-out rows, where its prepared data is still kept; empty otherwise."""
    from tunekit.data import cache
    from tunekit.data.prepare import Prepared
    from tunekit.plan.plan import Plan
    from tunekit.train.inputs import Inputs, eval_items

    if not (run / "plan.json").exists():
        return ()
    plan = Plan.load(run / "plan.json")
    try:
        name = Inputs(plan.recipe, Path(plan.recipe_folder)).key.name
    except TunekitError:  # sources that are gone, or elsewhere
        return ()
    kept = [place / name for place in (cache.root(), run / "data") if (place / name / "key.json").exists()]
    return eval_items(Prepared(kept[0])) if kept else ()


def table(proof: dict[str, Any]) -> RenderableType:
    """The proof's figures for a terminal: what was measured, and what it may be."""
    from tunekit.runs.summary import slim_table
    from tunekit.runs.wording import count, number, percent

    merged, effect, bound, perplexity = (proof[key] for key in ("merged", "effect", "limits", "perplexity"))
    grid = slim_table()
    grid.add_column(f"{proof['prompts']} prompts, {count(proof['positions'])} positions", no_wrap=True)
    for name in ("base", "adapter", f"merged ({proof['dtype']})", "limit"):
        grid.add_column(name, justify="right")
    for label, key, show, sign in (
        ("largest logit difference", "largest_logit_difference", number, "≤"),
        ("mean KL, nats", "mean_kl", number, "≤"),
        ("likeliest token the same", "top1_agreement", percent, "≥"),
    ):
        limit = f"{sign} {show(bound[key])}" if key in bound else "–"
        grid.add_row(label, show(effect[key]), "", show(merged[key]), limit)
    grid.add_row("perplexity", *(number(perplexity[name]) for name in ("base", "adapter", "merged")), "–")
    if proof["as_trained"]:
        trained = number(perplexity["as_trained"])
        grid.add_row("  on the quantized base, as trained", "", trained, "", "–")
    grid.add_row("greedy texts the same", "", "", f"{proof['same_texts']} of {proof['prompts']}", "–")
    return grid
