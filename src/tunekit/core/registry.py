"""Plug-ins are the modules of a folder: found by listing it, imported by name when asked for, never named elsewhere."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType

from tunekit.core.errors import UserError


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The known name that ``name`` was most likely meant to be, or None when nothing is close."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A hint such as ``did you mean 'epochs'?``, or the list of known names when nothing is close."""
    known = sorted(names)
    close = nearest(name, known)
    return f"did you mean '{close}'?" if close else f"known: {', '.join(known)}"


@dataclass(frozen=True)
class Registry:
    """The plug-ins of one folder.

    Args:
        package: dotted name of the folder, for example ``tunekit.methods``.
        kind: what one plug-in is called in messages, for example ``method``.
        family: dotted name of a module that makes further plug-ins, which have no file of their own: its ``names()``
            gives those that can be listed, ``knows(name)`` says of any name whether it makes it, ``load(name)`` does.
    """

    package: str
    kind: str
    family: str | None = None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The plug-ins' names, sorted."""
        further = importlib.import_module(self.family).names() if self.family else ()
        return tuple(sorted({*self.files, *further}))

    @cached_property
    def files(self) -> tuple[str, ...]:
        """The names of those that have a file, sorted; nothing is imported but the (empty) package."""
        spec = importlib.util.find_spec(self.package)
        assert spec is not None and spec.submodule_search_locations is not None, self.package
        found = (m.name for m in pkgutil.iter_modules(spec.submodule_search_locations))
        return tuple(sorted(name for name in found if not name.startswith("_")))

    def knows(self, name: str) -> bool:
        """Whether there is such a plug-in."""
        return name in self.files or bool(self.family and importlib.import_module(self.family).knows(name))

    def load(self, name: str) -> ModuleType:
        """Imports one plug-in.

        Raises:
            UserError: there is no plug-in of that name; the nearest name is given.
        """
        if name in self.files:
            return importlib.import_module(f"{self.package}.{name}")
        if not self.knows(name):
            raise UserError(f"unknown {self.kind} '{name}'", fix=did_you_mean(name, self.names))
        assert self.family is not None
        plugin: ModuleType = importlib.import_module(self.family).load(name)
        return plugin

    def help(self, name: str) -> str:
        """The first line of a plug-in's docstring; of one that has a file it is read, not imported: help is quick."""
        if name not in self.files:
            return (self.load(name).__doc__ or "").strip().splitlines()[0]
        spec = importlib.util.find_spec(f"{self.package}.{name}")
        assert spec is not None and spec.origin is not None, name
        with Path(spec.origin).open(encoding="utf-8") as file:
            first = file.readline()
        assert first.startswith('"""'), f"{spec.origin} begins with its docstring"
        return first[3:].split('"""')[0].strip()


METHODS = Registry("tunekit.methods", "method")
ADAPTERS = Registry("tunekit.model.adapters", "adapter kind", family="tunekit.model.adapters._peft")
QUANTIZERS = Registry("tunekit.model.quantizers", "quantization kind")
FORMATS = Registry("tunekit.data.formats", "data format")
TASKS = Registry("tunekit.evaluate.tasks", "evaluation task")
METRICS = Registry("tunekit.evaluate.metrics", "metric", family="tunekit.evaluate.metrics._hub")
ENGINES = Registry("tunekit.evaluate.engines", "engine")
REWARDS = Registry("tunekit.rl.rewards", "reward")
BACKENDS = Registry("tunekit.compress.backends", "quantization backend")
EXPORTS = Registry("tunekit.compress.exports", "export")
PRUNERS = Registry("tunekit.compress.prune.ways", "way of pruning")
