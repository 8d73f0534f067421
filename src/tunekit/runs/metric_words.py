"""A line of metrics in words: what of it stands on a screen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tunekit.runs.values import HELD_OUT, value_name
from tunekit.runs.wording import as_float, compact, count, number, percent

MFU_WORDS = "MFU: model FLOPs utilization, a share of the rate of matrix products measured on this machine"
_NEVER_EXTRA = frozenset({"step", "total_steps", "epoch", "seconds", "seconds_left", "trained_tokens_per_second"})
_SHORT = {
    "eval_loss": ("eval loss", number),
    "learning_rate": ("lr", number),
    "grad_norm": ("grad", number),
    "tokens_per_second": ("", lambda value: f"{compact(value)} tok/s"),
    "mfu": ("MFU", percent),
    "trained_share": ("trained tokens", percent),
    "padding_share": ("padding", percent),
    "memory_gb": ("", lambda value: f"{value:.1f} GB"),
}
_FEW = {
    "reward": ("reward", number),
    "reward_accuracy": ("reward accuracy", percent),
    "reward_margin": ("reward margin", number),
    "kl": ("KL", number),
    "answer_tokens": ("answer", lambda value: f"{count(value)} tokens"),
}


def metric_words(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """``values`` as (label, shown value) pairs in the order of reading: loss first, then the known, then the rest.

    What the display itself shows (step, total_steps, ...) and second rates are left out. A method that learns from
    rewards or preferences logs more than a line holds: of its values only the few that tell how it goes, and every one
    that is not finite.
    """
    if any(key.removeprefix(HELD_OUT).startswith("reward") for key in values):
        return _few(values)
    known = ["loss", *_SHORT]
    order = [key for key in known if key in values] + [k for k in values if k not in known and k not in _NEVER_EXTRA]
    return [_word(*_SHORT.get(key, (key.replace("_", " "), number)), values[key]) for key in order]


def _few(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    looks = {"loss": ("loss", number), "eval_loss": _SHORT["eval_loss"]}
    looks |= _FEW | {f"{HELD_OUT}{key}": (f"eval {label}", show) for key, (label, show) in _FEW.items()}
    looks["tokens_per_second"] = _SHORT["tokens_per_second"]
    words = [_word(*look, values[key]) for key, look in looks.items() if key in values]
    hidden = [key for key in values if key not in looks and broken({key: values[key]})]
    return words + [_word(value_name(key), number, values[key]) for key in hidden]


def _word(label: str, show: Any, value: Any) -> tuple[str, str]:
    found = as_float(value)
    return label, str(value) if found is None else show(found)


def broken(values: Mapping[str, Any]) -> bool:
    """Whether any of the values is a number that is not finite."""
    return any((n := as_float(value)) is not None and not math.isfinite(n) for value in values.values())
