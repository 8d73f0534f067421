"""The gate: looks at the final examples, after truncation and packing, and refuses what would train wrongly."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunekit.core.errors import DataError, Problem
from tunekit.core.types import Material

SHOWN = 5
BRANCHES: Mapping[Material, int] = {"pairs": 2, "judged": 1, "prompts": 0}
NO_END = -1
"""Stands for the position of an end-of-turn token that a template does not write."""


@dataclass
class Gate:
    """Checks examples one after the other, then refuses all that is wrong at once.

    Args:
        vocabulary: number of rows of the model's embedding.
        bos_id: beginning-of-sequence token, or None.
        material: what the examples are.
    """

    vocabulary: int
    bos_id: int | None
    material: Material = "texts"
    found: dict[str, list[str]] = field(default_factory=dict)

    def look(self, example: Mapping[str, Any], where: Callable[[], str]) -> None:
        """Checks one final example.

        Args:
            example: ``input_ids``, ``labels`` (length T; ignored: -100), ``turn_ends`` (positions of the end-of-turn
                tokens of the trained turns, NO_END for a turn without one), ``starts`` (first positions of the packed
                examples), ``branches`` (tokens of each branch; none for texts).
            where: names the rows of the example.
        """
        ids, labels = example["input_ids"], example["labels"]
        if self.material != "texts":
            self._look_at_branches(labels, example["branches"], where)
        starts = [*example["starts"], len(ids)]
        for begin, end in itertools.pairwise(starts):
            if self.material == "texts" and max(labels[begin + 1 : end], default=-1) < 0:
                self._add("no token of the example is trained", where)
            if self.bos_id is not None and end - begin > 1 and ids[begin] == ids[begin + 1] == self.bos_id:
                self._add("the text begins with two beginning-of-sequence tokens", where)
        if NO_END in example["turn_ends"]:
            self._add("no end-of-turn token follows the trained text", where)
        if any(labels[position] < 0 for position in example["turn_ends"] if position != NO_END):
            self._add("the end-of-turn token of a trained turn is not trained", where)
        if max(ids) >= self.vocabulary or min(ids) < 0:
            self._add(f"token {max(ids)} lies outside the model's embedding of {self.vocabulary} rows", where)

    def _look_at_branches(self, labels: Sequence[int], branches: Sequence[int], where: Callable[[], str]) -> None:
        shared = len(labels) - sum(branches)
        if len(branches) != BRANCHES[self.material]:
            self._add(f"{len(branches)} answers where {BRANCHES[self.material]} are wanted", where)
        if shared < 1:
            self._add("no token stands before the answers", where)
        if max(labels[: max(shared, 0)], default=-1) >= 0:
            self._add("a token before the answers is trained", where)
        ends = list(itertools.accumulate(branches, initial=shared))
        if any(max(labels[begin:end], default=-1) < 0 for begin, end in itertools.pairwise(ends)):
            self._add("no token of an answer is trained", where)

    def overlap(self, rows: Iterable[tuple[str, str]]) -> None:
        """Notes evaluation rows whose rendered text is trained on: pairs of (eval row, train row)."""
        for held_out, trained in rows:
            self._add("held-out text is also trained on", lambda h=held_out, t=trained: f"{h} = {t}")  # type: ignore[misc]

    def _add(self, fault: str, where: Callable[[], str]) -> None:
        rows = self.found.setdefault(fault, [])
        rows.append(where() if len(rows) < SHOWN else "")

    def close(self) -> None:
        """Refuses the data when anything was found.

        Raises:
            DataError: one problem for each kind of fault, naming the first rows and counting the others.
        """
        problems = []
        for fault, rows in self.found.items():
            more = f" and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else ""
            problems.append(
                Problem(f"{fault} ({len(rows):,} rows)", ", ".join(rows[:SHOWN]) + more, _FIXES.get(fault, ""))
            )
        if problems:
            first = problems[0]
            raise DataError(first.what, where=first.where, fix=first.fix, problems=problems[1:])


_FIXES = {
    "no token of the example is trained": "raise data.max_length, or change data.loss_on",
    "no token of an answer is trained": "raise data.max_length",
    "the text begins with two beginning-of-sequence tokens": "remove the token from the text or from the chat template",
    "no end-of-turn token follows the trained text": "use a chat template that ends turns with a special token "
    "(model.chat_template), or the model never learns to stop",
    "the end-of-turn token of a trained turn is not trained": "move it inside {% generation %} in the chat template",
    "held-out text is also trained on": "remove the rows from one side, or let data.eval: {fraction: ...} split it",
}
