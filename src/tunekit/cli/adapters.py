"""`tunekit adapters`: the kinds of adapter, what they can do, what they train, and their keys."""

from __future__ import annotations

import json as jsonlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunekit.cli.shared import Debug, Json, guard
from tunekit.core.errors import TunekitError
from tunekit.core.registry import ADAPTERS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tunekit.model.adapter_facts import Kind

_WORDS = {"four": "4 bits", "eight": "8 bits", "conv1d": "GPT-2", "merges": "merges"}


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("adapters", rich_help_panel="Look before you train")(adapters)


def adapters(
    kind: Annotated[str | None, typer.Argument(help="Show this kind and its keys.", metavar="KIND")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Count what each kind trains in this model; no weights are loaded."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the kinds of adapter, or show the keys of one.

    Example: [bold]tunekit adapters lora[/bold]

    Example: [bold]tunekit adapters --model Qwen/Qwen3-0.6B[/bold]
    """
    with guard(json=json, debug=debug):
        from tunekit.model.adapter_facts import Counter, kind_of

        found = [kind_of(name) for name in ([kind] if kind else ADAPTERS.names)]
        counter = Counter(model) if model else None
        total = counter.parameters if counter else None
        trained = {each.name: _trained(counter, each) for each in found} if counter else {}
        if json:
            typer.echo(jsonlib.dumps(_plain(found, trained, model, total, keys=kind is not None), ensure_ascii=False))
            return
        from rich.console import Console

        console = Console(highlight=False)
        if kind:
            _show(console.print, found[0], trained.get(kind), total)
            return
        console.print(_table([each for each in found if not each.refused], trained, total))
        console.print()
        console.print(_refused([each for each in found if each.refused]))
        more = "" if model else "; --model NAME counts what each trains in that model"
        console.print(f"\ntunekit adapters KIND shows its keys{more}")


def _trained(counter: Any, kind: Kind) -> int | str:
    """Parameters, or why they cannot be counted."""
    if kind.refused:
        return kind.refused
    try:
        return int(counter.trained(kind.name))
    except TunekitError as error:
        return str(error)


def _can(kind: Kind) -> dict[str, bool]:
    return {name: bool(kind.can and getattr(kind.can, name)) for name in _WORDS}


def _table(kinds: list[Kind], trained: dict[str, int | str], total: int | None) -> RenderableType:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("kind", no_wrap=True)
    if total:
        table.add_column("trained", justify="right", no_wrap=True)
        table.add_column("share", justify="right", no_wrap=True)
        table.add_column("memory", justify="right", no_wrap=True)
    for word in (*_WORDS.values(), "rate"):
        table.add_column(word, no_wrap=True)
    table.add_column("")
    for kind in kinds:
        counts = _counts(trained[kind.name], total) if total else ()
        marks = ["yes" if can else "[dim]–[/dim]" for can in _can(kind).values()]
        text = kind.help + "".join(f" Needs: {line}" for line in kind.packages)
        if total and isinstance(trained[kind.name], str) and not kind.packages:
            text = str(trained[kind.name])
        table.add_row(kind.name, *counts, *marks, f"{kind.learning_rate:g}", escape(text))
    return table


def _counts(trained: int | str, total: int) -> tuple[str, str, str]:
    from tunekit.model.adapter_facts import BYTES

    if isinstance(trained, str):
        return "–", "–", "–"
    return f"{trained:,}", f"{trained / total:.2%}", f"{trained * BYTES / 1e6:,.1f} MB"


def _refused(kinds: list[Kind]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("refused", no_wrap=True)
    table.add_column("")
    for kind in kinds:
        table.add_row(kind.name, kind.refused)
    return table


def _show(say: Any, kind: Kind, trained: int | str | None, total: int | None) -> None:
    """One kind: what it is, what it can do, and the keys of its block."""
    from rich.markup import escape
    from rich.table import Table

    from tunekit.recipe.reference import keys_of

    say(f"[bold]{kind.name}[/bold]  {escape(kind.help)}")
    if kind.refused:
        say(f"refused: {escape(kind.refused)}")
    else:
        can = [word for name, word in _WORDS.items() if _can(kind)[name]]
        say(f"works with: {', '.join(can) or 'full weights only'}; learning rate {kind.learning_rate:g}")
    if total and trained is not None:
        counts = _counts(trained, total)
        say(escape(trained) if isinstance(trained, str) else f"trains {counts[0]} ({counts[1]}), {counts[2]}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("key", "value", "default", ""):
        table.add_column(name, no_wrap=name == "key")
    for key in keys_of(ADAPTERS.load(kind.name).Config):
        table.add_row(key.name, *(escape(part.replace("`", "")) for part in (key.values, key.default, key.help)))
    say()
    say(table)


def _plain(
    kinds: list[Kind], trained: dict[str, int | str], model: str | None, total: int | None, *, keys: bool
) -> dict[str, Any]:
    from tunekit.model.adapter_facts import BYTES
    from tunekit.recipe.reference import keys_of

    found = []
    for kind in kinds:
        one: dict[str, Any] = {"kind": kind.name, "help": kind.help, "refused": kind.refused or None}
        one |= {"learning_rate": kind.learning_rate, "measured": kind.can is not None} | _can(kind)
        if kind.name in trained:
            count = trained[kind.name]
            counted = isinstance(count, int)
            one |= {"trained": count if counted else None, "uncounted": None if counted else count}
            one["bytes"] = count * BYTES if isinstance(count, int) else None
        if keys:
            one["keys"] = [key._asdict() for key in keys_of(ADAPTERS.load(kind.name).Config)]
        found.append(one)
    return {"model": model, "parameters": total, "kinds": found}
