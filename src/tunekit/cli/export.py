"""The verb export: a model as those take it who serve it, proven to be the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tunekit.cli.shared import Debug, Json, Quiet, guard
from tunekit.cli.smaller import Rows, named_after, proof_keys, refuse_recipe, show
from tunekit.cli.stopping import stoppable
from tunekit.core.errors import UserError


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("export", rich_help_panel="Hand on")(export)


def export(
    model: Annotated[
        str, typer.Argument(help="Run, adapter, model folder, Hub id or builtin:<name>.", metavar="MODEL")
    ],
    to: Annotated[str, typer.Option("--to", help="safetensors, gguf, vllm or ollama.")] = "safetensors",
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Type of the weights, such as bfloat16, f16 or q8_0; see below.")
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option("--shard-size", help="Of a safetensors file, at most, such as 2GB; default: 5GB.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New folder; default: MODEL-<what it is exported to>.")
    ] = None,
    data: Rows = None,
    limit: Annotated[str, typer.Option("--max-ppl-increase", help="Refuse where perplexity rises by more.")] = "5%",
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Export a model for those who serve it: adapters are merged first, and the result is compared with its source.

    Types: bfloat16 (default), float16 or float32 for safetensors and vllm; f16 (default), bf16, q8_0, q6_k, q5_k_m,
    q4_k_m or q4_0 for gguf; the same with q8_0 by default for ollama.

    Example: [bold]tunekit export runs/support --to ollama[/bold]

    Example: [bold]tunekit export runs/support --to safetensors --dtype float16 --shard-size 2GB[/bold]
    """
    with guard(json=json, debug=debug), stoppable():
        from tunekit.compress.options import PROOF, document, in_words_of
        from tunekit.compress.recipe import check
        from tunekit.core.registry import EXPORTS
        from tunekit.runs.screen import make_screen

        plugin = EXPORTS.load(to)
        kind = dtype or plugin.KINDS[0]
        if kind not in plugin.KINDS:
            known = ", ".join(plugin.KINDS)
            raise UserError(f"'{kind}' is no type for {to}", where="--dtype", fix=f"one of {known}")
        refuse_recipe(model, "export")
        named: dict[str, Any] = {"to": [{"kind": kind}], "to.0.shard_size": shard_size}
        named |= proof_keys(None, data, limit, None)
        with in_words_of(PROOF | {"to.0.shard_size": "--shard-size"}):
            recipe = check(document(model, named))
        target = output or named_after(model, to)
        screen = make_screen(quiet=quiet, json=json)
        with screen.step("starting"):
            from tunekit.compress import quantize as work
        work.refuse_full(target)
        made = work.Job(recipe, Path(), target, screen, plugin.finish).run()
        show(made, target, quiet=quiet, json=json, use=plugin.use(target))
