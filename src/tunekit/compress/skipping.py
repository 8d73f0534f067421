"""Modules that are left as they are, by name."""

from __future__ import annotations

from collections.abc import Sequence

from tunekit.compress.contract import Weight
from tunekit.core.errors import Problem
from tunekit.core.registry import did_you_mean


def is_skipped(name: str, skip: Sequence[str]) -> bool:
    """Whether a tensor's module bears one of the names, or lies in one that does; as `model.quantize.skip` is read."""
    module = f".{name.removesuffix('.weight')}."
    return any(f".{one}." in module for one in skip)


def skip_problems(skip: Sequence[str], weights: Sequence[Weight]) -> list[Problem]:
    """Names that no module bears."""
    modules = {weight.name.removesuffix(".weight") for weight in weights if weight.role == "linear"}
    parts = {part for name in modules for part in name.split(".") if not part.isdigit()}
    return [
        Problem(f"no linear layer is called '{one}' or lies in it", "skip", did_you_mean(one, parts))
        for one in skip
        if not any(is_skipped(name, (one,)) for name in modules)
    ]
