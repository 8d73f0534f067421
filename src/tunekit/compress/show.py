"""Smaller models in the terminal: what each cost and saved, and the kinds that there are."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunekit.compress.contract import LLAMA_CPP
from tunekit.compress.made import RECORD, Made
from tunekit.compress.task_words import tasks_grid
from tunekit.compress.words import agreement, below, divergence, interval, rise
from tunekit.core.registry import BACKENDS
from tunekit.runs.summary import pairs, slim_table

MIB = 1 << 20


def known_kinds() -> list[dict[str, Any]]:
    """Every kind: its help, backend, what reads it, whether it is calibrated, and what is missing for it."""
    found = []
    for name in BACKENDS.names:
        plugin = BACKENDS.load(name)
        missing = [line for module, line in plugin.PACKAGES.items() if importlib.util.find_spec(module) is None]
        for kind, text in plugin.KINDS.items():
            found.append({
                "kind": kind, "help": text, "backend": name, "runtime": plugin.RUNTIME,
                "calibrated": kind in plugin.CALIBRATED, "devices": list(plugin.DEVICES.get(kind, ("cpu", "cuda"))),
                "missing": missing,
            })  # fmt: skip
    return found


def kinds_words(kinds: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The kinds for a terminal, and what has to be installed for those that cannot be made here yet."""
    grid = slim_table()
    for name in ("kind", "what it is", "looks at text"):
        grid.add_column(name, no_wrap=name == "kind")
    for kind in kinds:
        where = "" if "cpu" in kind["devices"] else f"; on {', '.join(kind['devices'])} only"
        grid.add_row(kind["kind"], kind["help"] + where, "yes" if kind["calibrated"] else "–")
    lines: dict[str, list[str]] = {}
    for kind in kinds:
        for line in kind["missing"]:
            lines.setdefault(line, []).append(kind["kind"])
    told = [Text(f"{line}   for {', '.join(names)}") for line, names in lines.items()]
    return Group(grid, "", Text("to be installed first:", style="bold"), *told) if told else grid


def size(value: float) -> str:
    """Bytes for people: ``12.8 MiB``."""
    return f"{value / MIB:,.1f} MiB" if value < 1024 * MIB else f"{value / MIB / 1024:,.2f} GiB"


def console(made: Sequence[Made], folder: Path, report: Path | None, use: str | None = None) -> RenderableType:
    """A line for the source and each kind, then where everything lies, and the command that uses it."""
    done = [one.record for one in made if one.record is not None]
    parts: list[RenderableType] = []
    if done:
        lines = [(record["kind"], record) for record in done]
        parts += [_quality(done), "", nearness(lines, len(done[0]["texts"])), "", *tasks_grid(lines), _cost(done), ""]
        parts.append(Text(about(done[0]), style="dim"))
    parts += [Text(f"{one.kind}: refused: {one.error}", style="red") for one in made if one.error is not None]
    facts = [("model", str(one.folder)) for one in made if one.record is not None]
    first = next((one for one in made if one.record is not None), None)
    if first is not None:
        facts.append(("use", use or load_line(first)))
    if report is not None:
        facts.append(("report", str(report)))
    return Group(*parts, "", pairs(facts)) if facts else Group(*parts)


def load_line(made: Made) -> str:
    """How the artefact is loaded."""
    plugin = next(BACKENDS.load(name) for name in BACKENDS.names if made.kind in BACKENDS.load(name).KINDS)
    if plugin.RUNTIME == LLAMA_CPP:
        return f"llama-cli -m {next(made.folder.glob('*.gguf'), made.folder / 'model.gguf')}"
    return f"AutoModelForCausalLM.from_pretrained({str(made.folder)!r})"


def about(record: Mapping[str, Any]) -> str:
    """On what was measured."""
    return (
        f"on {record['rows_measured']} rows ({record['rows']}), {record['positions']:,} positions; with 95 % "
        f"intervals over rows; KL from the source in nats; at how many positions the likeliest token is the "
        f"same, and of how many prompts the answer; all figures lie in each folder's {RECORD}"
    )


def _quality(records: Sequence[Mapping[str, Any]]) -> Table:
    first, grid = records[0], slim_table()
    for name in ("", "size", "perplexity", "rises by"):
        grid.add_column(name, justify="right" if name else "left", no_wrap=True)
    grid.add_row("source", size(first["source_size"]), below(interval(first["source_perplexity"])), "–")
    for record in records:
        grid.add_row(
            record["kind"],
            f"{size(record['size'])}\n÷ {record['source_size'] / record['size']:.2f}",
            below(interval(record["perplexity"])),
            below(rise(record["increase"])),
        )
    return grid


def nearness(lines: Sequence[tuple[str, Mapping[str, Any]]], answers: int) -> Table:
    """How near each is to its source.

    Args:
        lines: names and figures.
        answers: that were asked for.
    """
    grid = slim_table()
    for name in ("", "mean KL", "top-1", "answers"):
        grid.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name, found in lines:
        same = f"{found['same_texts']} of {answers}"
        grid.add_row(name, below(divergence(found)), below(agreement(found)), same)
    return grid


def _cost(records: Sequence[Mapping[str, Any]]) -> Table:
    grid = slim_table()
    for name in ("", "loads in", "memory at most", "reads", "writes"):
        grid.add_column(name, justify="right" if name else "left", no_wrap=True)
    grid.add_row("source", *_speeds({key: values[0] for key, values in records[0]["cost"].items()}))
    for record in records:
        grid.add_row(record["kind"], *_speeds({key: values[1] for key, values in record["cost"].items()}))
    return grid


def _speeds(cost: Mapping[str, float]) -> tuple[str, ...]:
    return (
        f"{cost['load_seconds']:.1f} s", size(cost["peak_memory"]), f"{cost['prompt_speed']:,.0f} tok/s",
        f"{cost['answer_speed']:,.0f} tok/s",
    )  # fmt: skip
