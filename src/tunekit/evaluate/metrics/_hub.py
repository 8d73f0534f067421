"""Metrics that have no file here: `hub:ID`, a module of the `evaluate` library, by its Hub id or its local folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tunekit.core.errors import UserError, first_line

PREFIX = "hub:"
_TEXT = ("string", "large_string")


class Config(BaseModel):
    """Options of the metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow_code_execution: bool = Field(
        default=False, description="run the module's own Python code on this machine; the Hub holds anybody's"
    )
    revision: str | None = Field(default=None, description="the module's version on the Hub: a tag or a commit")
    config_name: str | None = Field(default=None, description="which part of a module that has several")
    key: str | None = Field(default=None, description="which of the module's numbers; default: the one it is named by")
    better: Literal["higher", "lower"] = Field(default="higher", description="which way is up; modules do not say it")
    options: dict[str, Any] = Field(default_factory=dict, description="handed to the module's `compute`")


def names() -> tuple[str, ...]:
    """None: what the Hub holds is not listed."""
    return ()


def knows(name: str) -> bool:
    """Whether a name is that of a module of the `evaluate` library."""
    return name.startswith(PREFIX) and len(name) > len(PREFIX)


@cache
def load(name: str) -> ModuleType:
    """A plug-in such as a file of this folder would be; nothing is downloaded yet."""
    path = name.removeprefix(PREFIX)
    plugin = ModuleType(
        f"{__name__}.{path}", f"the module `{path}` of the evaluate library, from the Hub or a local folder"
    )

    def check(references: Sequence[Sequence[str]], config: Config) -> None:
        _module(path, config)

    def score(predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[float]:
        return _scores(path, predictions, references, config)

    def note(references: Sequence[Sequence[str]], config: Config) -> str:
        at = f" at {config.revision}" if config.revision else ""
        return f"mean over rows, each row given to {path}{at} by itself"

    def higher_is_better(config: Config) -> bool:
        return config.better == "higher"

    for each in (check, score, note, higher_is_better):
        setattr(plugin, each.__name__, each)
    plugin.__dict__.update(Config=Config, HIGHER_IS_BETTER=True)
    return plugin


def _module(path: str, config: Config) -> Any:
    """The module, downloaded when it is not in the library's cache, with the kind of each of its columns.

    Raises:
        UserError: its code may not run, it cannot be had, or it does not compare texts.
    """
    if not config.allow_code_execution:
        raise UserError(
            f"metric '{PREFIX}{path}' runs Python code that comes with it, and was written by whoever published it",
            fix=f"read it, and write {{'{PREFIX}{path}': {{allow_code_execution: true}}}} if you trust it",
        )
    module = _loaded(path, config.revision, config.config_name)
    columns = _columns(module)
    if set(columns) != {"predictions", "references"} or not set(columns.values()) <= {"text", "texts"}:
        told = ", ".join(f"{name}: {kind}" for name, kind in columns.items())
        raise UserError(
            f"metric '{PREFIX}{path}' does not compare an answer with its references, both texts; it takes {told}",
            fix="name a metric that takes predictions and references as texts",
        )
    return module


@cache
def _loaded(path: str, revision: str | None, config_name: str | None) -> Any:
    """`evaluate.load`.

    Raises:
        UserError: whatever it raises: its own code, the network and the packages that it imports may all fail.
    """
    import evaluate

    try:
        return evaluate.load(path, config_name, revision=revision, keep_in_memory=True)
    except Exception as error:
        raise UserError(
            f"metric '{PREFIX}{path}' cannot be loaded: {first_line(error)}",
            fix="check its name; without a network it must be in the evaluate library's cache, or a folder here",
        ) from error


def _columns(module: Any) -> dict[str, str]:
    """What a module reads: a kind for each of its columns, of the first of its forms that takes most references."""
    from datasets import Value

    forms = module.features if isinstance(module.features, list) else [module.features]
    found = []
    for form in forms:
        kinds = {}
        for name, feature in form.items():
            inner = getattr(feature, "feature", feature)
            many = inner is not feature
            text = isinstance(inner, Value) and inner.dtype in _TEXT
            kinds[name] = ("texts" if many else "text") if text else str(feature)
        found.append(kinds)
    return max(found, key=lambda kinds: (kinds.get("predictions") == "text", kinds.get("references") == "texts"))


def _scores(path: str, predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[float]:
    """The module's number of each row by itself; of a module that takes one reference, the best over the row's."""
    module = _module(path, config)
    columns = _columns(module)
    best = max if config.better == "higher" else min
    found = []
    for answer, right in zip(predictions, references, strict=True):
        given = [answer] if columns["predictions"] == "text" else [[answer]]
        tries: list[Any] = [list(right)] if columns["references"] == "texts" else list(right)
        found.append(best(_number(path, module, given, [one], config) for one in tries))
    return found


def _number(path: str, module: Any, answer: list[Any], right: list[Any], config: Config) -> float:
    """One row's number.

    Raises:
        UserError: the module fails, has no such number, or gives something else than a finite number.
    """
    try:
        result = module.compute(predictions=answer, references=right, **config.options)
    except Exception as error:
        raise UserError(
            f"metric '{PREFIX}{path}' failed on the answer {answer[0]!r:.80}: {first_line(error)}",
            fix="check its options, or leave it out",
        ) from error
    key = config.key or _key(path, result)
    number = result.get(key) if isinstance(result, dict) else None
    if isinstance(number, list | tuple) and len(number) == 1:
        number = number[0]
    try:
        value = float(number)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        known = ", ".join(map(str, result)) if isinstance(result, dict) else f"{result!r:.60}"
        raise UserError(
            f"metric '{PREFIX}{path}' gives {number!r:.60} as '{key}' for the answer {answer[0]!r:.80}",
            fix=f"name one of its numbers by `key`; it gives: {known}",
        )
    return value


def _key(path: str, result: Any) -> str:
    """The number that the module is named by, or its only one."""
    own = path.rstrip("/").rpartition("/")[2].removesuffix(".py")
    if isinstance(result, dict) and own not in result and len(result) == 1:
        return str(next(iter(result)))
    return own
