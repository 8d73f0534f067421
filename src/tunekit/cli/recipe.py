"""Verbs about recipes: init, schema, plan."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunekit.cli.shared import Debug, Json, Overrides, RecipePath, guard, make_plan, read_recipe
from tunekit.core.errors import UserError
from tunekit.core.registry import METHODS, QUANTIZERS, did_you_mean

if TYPE_CHECKING:
    from tunekit.plan.plan import Plan
    from tunekit.recipe.schema import ModelBlock, Recipe

PANEL = "Look before you train"
SCHEMA = "tunekit.schema.json"


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("init", rich_help_panel="Begin")(init)
    app.command("schema", rich_help_panel="Begin")(schema)
    app.command("plan", rich_help_panel=PANEL)(plan)


def init(
    method: Annotated[str, typer.Argument(help="The training method: " + ", ".join(METHODS.names) + ".")] = "sft",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write it; default: the screen.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a commented recipe that works as it is.

    Example: [bold]tunekit init sft -o recipe.yaml[/bold]
    """
    with guard(debug=debug):
        from tunekit.core.files import write_atomic, write_json

        if method not in METHODS.names:
            raise UserError(f"unknown method '{method}'", fix=did_you_mean(method, METHODS.names))
        text = METHODS.load(method).RECIPE
        if output is None:
            typer.echo(text, nl=False)
            return
        if output.exists():
            raise UserError("the file exists already", where=str(output), fix="name another, or remove it")
        beside = output.parent / SCHEMA
        write_json(beside, full_schema())
        write_atomic(output, f"# yaml-language-server: $schema=./{SCHEMA}\n{text}")
        typer.echo(f"wrote {output} (and {beside}, by which editors check and complete it)")
        typer.echo(f"next: tunekit plan {output}, then tunekit {method} {output}")


def schema(
    method: Annotated[str | None, typer.Option("--method", "-m", help="Only this method's recipes.")] = None,
    debug: Debug = False,
) -> None:
    """Print the JSON Schema of recipes, for editors.

    Example: [bold]tunekit schema > tunekit.schema.json[/bold]
    """
    with guard(debug=debug):
        from tunekit.recipe.kinds import recipe_type

        value = recipe_type(method).model_json_schema() if method else full_schema()
        typer.echo(jsonlib.dumps(value, ensure_ascii=False, indent=2))


def full_schema() -> dict[str, Any]:
    """One schema for the recipes of all methods: the shared blocks, and each method's own."""
    from tunekit.recipe.kinds import recipe_type

    whole: dict[str, Any] = {}
    for name in METHODS.names:
        value = recipe_type(name).model_json_schema()
        if not whole:
            whole = value | {"title": "tunekit recipe", "$schema": "https://json-schema.org/draft/2020-12/schema"}
        whole["properties"] |= value["properties"]
        whole["$defs"] |= value["$defs"]
    whole["properties"]["method"] |= {"enum": list(METHODS.names)}
    whole["required"] = [name for name in whole.get("required", []) if name != "method"]
    return whole


def plan(recipe: RecipePath, overrides: Overrides = None, json: Json = False, debug: Debug = False) -> None:
    """Resolve and check everything, data included, and train nothing.

    Example: [bold]tunekit plan recipe.yaml --set data.max_length=512[/bold]
    """
    with guard(json=json, debug=debug):
        from tunekit.recipe.kinds import material_of
        from tunekit.runs.screen import make_screen

        checked = read_recipe(recipe, None, overrides)
        screen = make_screen(quiet=False, json=json)
        with screen.step("looking at the machine"):
            resolved = make_plan(checked, recipe)
        import tempfile

        from tunekit.train.inputs import Inputs, planned_steps, said_of_rows

        inputs = Inputs(checked, recipe.parent)
        inputs.look()
        with tempfile.TemporaryDirectory() as folder:
            prepared = inputs.prepare(screen, Path(folder))
            facts = prepared.facts
            if material_of(checked) == "judged" and (rows := prepared.dataset("train")) is not None:
                facts |= {"good": sum(score > 0.5 for score in rows["score"])}
        if json:
            typer.echo(jsonlib.dumps({"plan": resolved.model_dump(mode="json"), "data": facts}, ensure_ascii=False))
            return
        for line in said_of_rows(facts, material_of(checked)):
            screen.say(line)
        for name, value in describe(resolved, facts, planned_steps(resolved, facts)):
            typer.echo(f"  {name:<22} {value}")


def describe(plan: Plan, facts: dict[str, Any], steps: int) -> list[tuple[str, str]]:
    """The plan in lines of name and value."""
    recipe = plan.recipe
    adapter = recipe.adapter_block
    hardware = plan.hardware
    device = (
        ", ".join(gpu.name for gpu in hardware.gpus)
        or f"{hardware.cpu}, {hardware.cores} cores, {plan.threads} threads a process"
    )
    split = f"{plan.processes} process(es) x {plan.micro_batch_size} x {plan.accumulation} accumulated"
    return [
        ("method", f"{plan.method}: {METHODS.help(plan.method)}"),
        ("model", f"{recipe.model.name} in {plan.weights_dtype}{_bits_words(recipe.model)}"),
        ("adapter", "none (full fine-tuning)" if adapter is None else _adapter_words(adapter)),
        *_option_words(plan),
        ("examples", f"{_to_train(plan, facts)}, {facts['eval_examples']:,} held out"),
        ("global batch", f"{plan.examples_per_step} = {split}"),
        ("steps", f"{steps:,}{_of_a_step(plan)}"),
        ("learning rate", _rate_words(recipe)),
        ("precision", plan.precision),
        ("speed settings", _speed_words(plan)),
        ("device", device),
        ("run folder", plan.run_dir),
        ("plan hash", plan.hash[:16]),
    ]


def _rate_words(recipe: Recipe) -> str:
    from tunekit.recipe.rates import why_rate

    train, why = recipe.train, why_rate(recipe)
    return f"{train.learning_rate:g}{f' ({why})' if why else ''}, {train.schedule}, warm-up {train.warmup:g}"


def _bits_words(model: ModelBlock) -> str:
    if model.quantize is None:
        return ""
    kind = model.quantize.kind
    return f", its linear layers in {QUANTIZERS.load(kind).bits(model.quantize)} bits ({kind})"


def _adapter_words(adapter: Any) -> str:
    return f"{adapter.kind}, which goes on from {adapter.start}" if adapter.start else str(adapter.kind)


_TELLING = ("loss", "beta", "reference", "teacher", "mode", "divergence")
"""Options of a method that say what is learnt: `tunekit plan` shows them whether they are given or not."""
_OWN_REFERENCES = {"initial": "initial (the policy as it begins)", "base": "base (the model without its adapter)"}


def _option_words(plan: Plan) -> list[tuple[str, str]]:
    """The method's own options: a line of those that tell what is learnt and those that are set, and its own words."""
    options = plan.recipe.options
    told: frozenset[str] = getattr(options, "TOLD", frozenset())
    own: list[tuple[str, str]] = options.words() if hasattr(options, "words") else []
    shown = []
    for name, field in type(options).model_fields.items():
        value = getattr(options, name)
        tells = name in _TELLING and not (name == "beta" and hasattr(options, "teacher"))  # distill's is of jsd alone
        if name not in told and (tells or value != field.default):
            word = _OWN_REFERENCES.get(value, value) if name == "reference" else value
            shown.append(f"{name} {f'{word:g}' if isinstance(word, float) else word}")
    return [*([(f"{plan.method} options", ", ".join(shown))] if shown else []), *own]


def _to_train(plan: Plan, facts: dict[str, Any]) -> str:
    """How much there is to learn from, in the words of the method's material."""
    from tunekit.recipe.kinds import material_of

    if plan.recipe.data.streaming:
        return "a stream to train on"
    what, filled = f"{facts['examples']:,}", f", packed {facts['filled']:.1%} full" if facts["filled"] else ""
    if material_of(plan.recipe) == "prompts":
        return f"{what} prompts to answer ({facts['tokens']:,} tokens)"
    if "good" in facts:
        what += f" answers ({facts['good']:,} good, {facts['examples'] - facts['good']:,} bad)"
    return f"{what} to train ({facts['tokens']:,} tokens{filled})"


def _of_a_step(plan: Plan) -> str:
    """What a step is, where its examples are not the data's rows."""
    from tunekit.runs.wording import amount

    answers = getattr(plan.recipe.options, "generations", 0)
    if not answers:
        return ""
    passes = plan.recipe.options.passes
    often = f"; each prompt is learnt from {passes} times" if passes > 1 else ""
    return f", each on {plan.examples_per_step} prompts with {amount(answers, 'answers')} each{often}"


def _speed_words(plan: Plan) -> str:
    """Packing, attention, kernels and compiling; what `auto` comes to where that is known before the run."""
    recipe = plan.recipe
    one_shape = recipe.data.packing and not METHODS.load(plan.method).ISOLATED
    compiled: str = recipe.train.compile
    if compiled == "auto":
        compiled = "auto (when the run is long enough)" if one_shape else "off"
    attention: str = recipe.model.attention
    if attention == "auto":
        attention = "auto (without padding if the model allows)"
    packing = "on" if recipe.data.packing else "off"
    return f"packing {packing}, attention {attention}, kernels {plan.kernels}, compile {compiled}"
