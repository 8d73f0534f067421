"""The reference tables of evaluation: `python -m tunekit.exam.reference docs/metrics.md docs/eval.md`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from tunekit.core.files import write_atomic
from tunekit.core.registry import ENGINES, METRICS, TASKS
from tunekit.evaluate.fewshot import FewShot
from tunekit.evaluate.judging import JudgeServer
from tunekit.exam.recipe import EngineBlock, ExamBase, ForgettingBlock, OverlapBlock, TaskBlock, exam_type
from tunekit.recipe.reference import Key, keys_of, markdown_table

PAGE = "metrics.md"
HUB_METRIC = "hub:ID"
"""Stands for the metrics that are named by their place on the Hub."""

_HEAD = """# Metrics of `tunekit eval`

Written from the metrics' own files by `python -m tunekit.exam.reference docs/metrics.md`; a test keeps it true. How
metrics are named in a recipe, and the numbers that tasks have of their own: [eval.md](eval.md#metrics).

*By* says how rows become the number: `row`, the mean of a number of each row; `corpus`, a number of all rows together,
made of sums over the rows, so that it can be resampled by row.

*Needs*: `eval` is the extra with the libraries that compute it, `pip install 'tunekit[eval]'`; a task that gives
probabilities, or several answers to a prompt; where nothing of the answers in the data is read, it says so.
"""

_OPTIONS = """
## Options

Given as `metrics: [{bleu: {tokenize: zh}}]`.
"""

_TABLE = re.compile(r"(<!-- keys of ([^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def metrics_page() -> str:
    """All of docs/metrics.md."""
    lines = ["", "| metric | | better | by | needs | options |", "|---|---|---|---|---|---|"]
    told: dict[Key, list[str]] = {}
    for name in (*METRICS.names, HUB_METRIC):
        metric = METRICS.load(name)
        keys = _keys_of(metric.Config)
        for key in keys:
            told.setdefault(key, []).append(name)
        cells = (
            f"`{name}`",
            METRICS.help(name),
            "higher" if metric.HIGHER_IS_BETTER else "lower",
            "row" if hasattr(metric, "score") else "corpus",
            _needs(metric),
            ", ".join(f"`{key.name}`" for key in keys),
        )
        lines.append(_row(cells))
    options = ["", "| option | of | value | default | |", "|---|---|---|---|---|"]
    for key, names in sorted(told.items(), key=lambda pair: pair[0].name):
        of = ", ".join(f"`{name}`" for name in names)
        options.append(_row((f"`{key.name}`", of, key.values, key.default, key.help)))
    return "\n".join([_HEAD.rstrip("\n"), *lines, _OPTIONS.rstrip("\n"), *options]) + "\n"


def filled(text: str) -> str:
    """A page with its tables of keys written anew, between ``<!-- keys of NAME -->`` and ``<!-- end -->``.

    Raises:
        KeyError: there is no block of that name.
    """
    known = _blocks()
    return _TABLE.sub(lambda part: f"{part[1]}\n{_keys(known[part[2]])}\n\n{part[3]}", text)


def main(paths: list[str]) -> None:
    """Writes the pages."""
    for path in map(Path, paths):
        write_atomic(path, metrics_page() if path.name == PAGE else filled(path.read_text(encoding="utf-8")))


def _blocks() -> dict[str, list[Key]]:
    """The keys of every block by the block's name; those of a task or an engine without what all of them have."""
    found = {
        "eval.yaml": _whole(),
        "contamination": _keys_of(OverlapBlock),
        "forgetting": _keys_of(ForgettingBlock),
        "every task": _keys_of(TaskBlock),
        "few_shot": _keys_of(FewShot),
        "judge.judge": _keys_of(JudgeServer),
    }
    for kind, registry, base in (("task", TASKS, TaskBlock), ("engine", ENGINES, EngineBlock)):
        for name in registry.names:
            common: type[BaseModel] = base
            own = _keys_of(registry.load(name).Config)
            found[f"{kind} {name}"] = [key for key in own if key.name not in common.model_fields]
    return found


def _whole() -> list[Key]:
    """The keys of a whole evaluation; blocks are filled in by default, whatever their own defaults are."""
    own = {key.name: key for key in _keys_of(exam_type())}
    first = ["model", "revision", "baseline", "data", "tasks", "engine"]
    names = [*first, *(name for name in ExamBase.model_fields if name not in first)]
    return [own[name]._replace(default="") if own[name].values == "block" else own[name] for name in names]


def _keys_of(block: type[BaseModel]) -> list[Key]:
    """The keys of a block; a list that is a default stands there as it is written in a recipe."""
    found = []
    for key in keys_of(block):
        field = block.model_fields.get(key.name)
        default = field.default if field is not None else None
        if isinstance(default, str) or (isinstance(default, tuple) and default):
            key = key._replace(default=f"`{_written(default)}`")
        found.append(key)
    return found


def _written(default: tuple[Any, ...] | str) -> str:
    plain = default if isinstance(default, str) and default.strip() else None
    return plain if plain is not None else json.dumps(default)


def _keys(keys: list[Key]) -> str:
    return "\n".join(markdown_table([Key(*map(_cell, key)) for key in keys]))


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    """A text that neither ends a cell nor begins a tag."""
    return text.replace("|", "\\|").replace("<name>", "NAME")


def _needs(metric: ModuleType) -> str:
    words = ["`eval`"] if hasattr(metric, "PACKAGE") else []
    words += ["probabilities"] if getattr(metric, "NEEDS_PROBABILITY", False) else []
    words += ["several answers"] if getattr(metric, "NEEDS_SAMPLES", False) else []
    words += [] if getattr(metric, "NEEDS_REFERENCE", True) else ["no answer in the data"]
    return ", ".join(words)


if __name__ == "__main__":
    main(sys.argv[1:])
