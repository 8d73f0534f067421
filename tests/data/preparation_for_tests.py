"""Recipes whose data can be prepared without a model's weights, and rows for them."""

import json
from pathlib import Path

from tunekit.core.progress import Silent
from tunekit.data.ledger import Ledger
from tunekit.recipe.document import override, parse
from tunekit.recipe.load import check
from tunekit.recipe.schema import Recipe
from tunekit.train.inputs import Inputs

TINY = "builtin:random?layers=1&hidden=32"
NAMES = [
    "ada", "bob", "cleo", "dan", "eve", "fay", "gus", "hal", "ivy", "joe",
    "kim", "lou", "max", "ned", "oda", "pam", "quin", "rod", "sue", "tom",
]  # fmt: skip


def chat(*turns):
    """A row of the chat format from texts that alternate between user and assistant."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}


def talk(number: int):
    """A short conversation; each number has its own text."""
    name = f"{NAMES[number % len(NAMES)]} {number}"
    return chat(f"Who is {name}?", f"{name} is number {number}." + " Really." * (number % 4))


def write(path: Path, rows) -> Path:
    """Rows as json lines; a row that is text already is written as it is."""
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def recipe(*sources, method: str = "sft", **sets) -> Recipe:
    """A recipe over sources (paths, or source blocks); other keys with ``__`` for dots."""
    named = {
        "model.name": TINY,
        "data.train": [s if isinstance(s, dict) else {"path": str(s)} for s in sources],
        "data.max_length": 64,
        "data.max_drop_rate": 1.0,
    } | {key.replace("__", "."): value for key, value in sets.items()}
    assignments = [f"{key}={json.dumps(value)}" for key, value in named.items()]
    return check(override(parse(f"method: {method}\n", "recipe.yaml"), assignments))


class Made:
    """Prepared data: the ledger's entries, the summary, the final examples."""

    def __init__(self, wanted: Recipe, folder: Path) -> None:
        self.inputs = Inputs(wanted, folder)
        self.prepared = self.inputs.prepare(Silent(), folder / "own")
        self.facts = self.prepared.facts
        self.summary = self.facts["summary"]
        self.ledger = list(Ledger.load(self.prepared.ledger_path))

    def rows(self, split="train"):
        data = self.prepared.dataset(split)
        return [] if data is None else list(data)

    def fates(self):
        """(line, fate, reason) of every row."""
        return [(entry.origin.line, entry.fate, entry.reason) for entry in self.ledger]

    def lines(self, split):
        """The input lines of a split's examples, one entry for each time a row is seen."""
        return sorted(self.ledger[n].origin.line for row in self.rows(split) for n in row["rows"])


def tokens_of(tokenizer, row) -> int:
    """How many tokens transformers itself makes of a conversation."""
    return len(tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False))


def balanced(summary) -> bool:
    """Whether the fates of every split add up to its rows."""
    fates = ("kept", "truncated", "dropped", "duplicate", "unused")
    return all(sum(part[fate] for fate in fates) == part["rows"] for part in summary.values())
