"""A pruned model in the terminal: what went, what it cost, and where it lies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from tunekit.compress.prune.job import RECORD
from tunekit.compress.prune.zeros import share
from tunekit.compress.show import nearness, size
from tunekit.compress.task_words import tasks_grid
from tunekit.compress.words import below, interval, rise
from tunekit.runs.summary import pairs, slim_table
from tunekit.runs.wording import percent


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
    for name in ("size", "perplexity", "rises by"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_row("source", size(record["source_size"]), below(interval(record["source_perplexity"])), "–")
    last = "healed" if "healing" in record else "pruned"
    lines = [*([("pruned", record["healing"]["before"])] if "healing" in record else []), (last, record)]
    for name, found in lines:
        grid.add_row(name, size(record["size"]), below(interval(found["perplexity"])), below(rise(found["increase"])))
    words = f"{went(record)}; on {record['rows_measured']} rows ({record['rows']}), {record['positions']:,} positions"
    asked = tasks_grid([(last, record)])
    load = f"AutoModelForCausalLM.from_pretrained({str(folder)!r})"
    facts = pairs([("model", str(folder)), ("record", str(folder / RECORD)), ("use", load)])
    return Group(grid, "", nearness(lines, len(record["texts"])), "", *asked, Text(words, style="dim"), "", facts)
