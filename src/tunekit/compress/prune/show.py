"""A pruned model in the terminal: what went, what it cost, and where it lies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from tunekit.compress.prune.job import RECORD
from tunekit.compress.prune.zeros import share
from tunekit.compress.show import interval, size
from tunekit.compress.task_words import tasks_grid
from tunekit.runs.summary import pairs, slim_table
from tunekit.runs.wording import number, percent


def went(record: Mapping[str, Any]) -> str:
    """What was left out, in words."""
    chosen = record["pruned"]
    if "tensors" in chosen:
        return f"{percent(share(chosen['tensors']))} of the weights in {len(chosen['tensors'])} linear layers are zero"
    if "dropped" in chosen:
        names = ", ".join(map(str, chosen["dropped"]))
        return f"{len(chosen['dropped'])} of {chosen['of']} layers are gone (counted from 0: {names})"
    stays, channels = len(chosen["layers"][0]["stays"]), chosen["layers"][0]["channels"]
    return f"{channels - stays} of {channels} feed-forward channels are gone in each of {len(chosen['layers'])} layers"


def console(record: Mapping[str, Any], folder: Path) -> RenderableType:
    """A line for the source, the pruned model, and the healed one; then what went, and where everything lies."""
    grid = slim_table()
    grid.add_column("", no_wrap=True)
    for name in ("size", "perplexity", "rises by", "mean KL", "top-1", "answers"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_row("source", size(record["source_size"]), interval(record["source_perplexity"]), *["–"] * 4)
    answers = len(record["texts"])
    if "healing" in record:
        _add(grid, "pruned", size(record["size"]), record["healing"]["before"], answers)
    _add(grid, "healed" if "healing" in record else "pruned", size(record["size"]), record, answers)
    words = f"{went(record)}; on {record['rows_measured']} rows ({record['rows']}), {record['positions']:,} positions"
    asked = tasks_grid([("healed" if "healing" in record else "pruned", record)])
    load = f"AutoModelForCausalLM.from_pretrained({str(folder)!r})"
    facts = pairs([("model", str(folder)), ("record", str(folder / RECORD)), ("use", load)])
    return Group(grid, "", *asked, Text(words, style="dim"), "", facts)


def _add(grid: Any, name: str, takes: str, found: Mapping[str, Any], answers: int) -> None:
    value, low, high = found["increase"]
    rise = f"{value:+.1%}\n{low:+.1%} to {high:+.1%}"
    grid.add_row(name, takes, interval(found["perplexity"]), rise, number(found["mean_kl"]),
                 percent(found["top1_agreement"]), f"{found['same_texts']} of {answers}")  # fmt: skip
