"""What a smaller model costs: its figures beside the source's, and what makes it no artefact at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekit.compress import fresh
from tunekit.compress.cut import cut_rows
from tunekit.core.errors import DivergedError, Problem, raise_all
from tunekit.evaluate.contract import EvalItem

SIZE = 0.03
"""How far the bytes on the disk may be from the arithmetic."""
SPELLED = 60  # characters of a text that are shown
LENGTH = 512
"""Tokens of a row that are looked at."""


class NotProvenError(DivergedError):
    """The artefact is not what it should be, or worse than it may be. Exit code 5."""

    title = "the smaller model is not proven"


@dataclass(frozen=True)
class Measured:
    """What a fresh process found of one model; see `measuring.work` for the values."""

    name: str
    size: int
    values: Mapping[str, Any]

    def perplexity(self) -> tuple[float, float, float]:
        """Over the rows' trained tokens: value and the bounds of its 95 % interval."""
        import numpy as np

        from tunekit.evaluate import statistics

        pairs = np.array([self.values["losses"], self.values["tokens"]], dtype=np.float64).T
        found = statistics.bootstrap_interval(pairs, statistics.perplexity, seed=0)
        return found.value, found.low, found.high


def measure(
    runtime: str, folder: Path, rows: Sequence[EvalItem], reference: Path, *, first: bool, threads: int, prompts: int,
    new_tokens: int,
) -> dict[str, Any]:  # fmt: skip
    """Measures a model in a fresh process.

    Args:
        runtime: what loads it, a module of `tunekit.compress.runtimes`.
        folder: of the model.
        rows: of text, see `fitted`.
        reference: a folder for what is kept of the source.
        first: this is the source.
        threads: of the process.
        prompts: how many of the rows' prompts are answered.
        new_tokens: of an answer, at most.

    Raises:
        TunekitError: what the process raised, or that it died.
    """
    job = {"runtime": runtime, "folder": str(folder.resolve()), "reference": str(reference), "first": first}
    job |= {"threads": threads, "prompts": prompts, "new_tokens": new_tokens}
    job |= {"rows": [dataclasses.asdict(row) for row in rows]}
    return fresh.run("tunekit.compress.measuring", job, "measures the model")


def fitted(rows: Sequence[Any], positions: int | None, most: int, new_tokens: int) -> list[EvalItem]:
    """So many rows at most, as `cut_rows` draws and cuts them."""
    sizes = {"most": most, "length": LENGTH, "new_tokens": new_tokens, "least": 2}
    return cut_rows(rows, positions, **sizes, fix="name rows: --data FILE")


def figures(source: Measured, made: Measured) -> dict[str, Any]:
    """What the artefact costs and saves.

    Returns:
        ``perplexity`` and ``source_perplexity`` (value, low, high), ``increase`` (share, low, high; paired by row),
        ``mean_kl`` (nats a position) and ``top1_agreement``, each with ``_interval`` (low, high; over rows),
        ``same_texts``, ``texts``, ``positions``, and of each model ``size`` (bytes), ``load_seconds``, ``peak_memory``
        (bytes), ``prompt_speed``, ``answer_speed`` (tokens/s).
    """
    import numpy as np

    from tunekit.evaluate import statistics

    one, other = source.values, made.values
    rows = np.array([np.subtract(other["losses"], one["losses"]), one["tokens"]], dtype=np.float64).T
    increase = statistics.bootstrap_interval(rows, lambda means: statistics.perplexity(means) - 1, seed=0)
    positions = sum(other["positions"])
    keys = ("load_seconds", "peak_memory", "prompt_speed", "answer_speed")
    return {
        "perplexity": made.perplexity(),
        "source_perplexity": source.perplexity(),
        "increase": (increase.value, increase.low, increase.high),
        "mean_kl": sum(other["kl"]) / positions,
        "mean_kl_interval": _by_row(other["kl"], other["positions"]),
        "top1_agreement": sum(other["agreeing"]) / positions,
        "top1_agreement_interval": _by_row(other["agreeing"], other["positions"]),
        "positions": positions,
        "rows_measured": len(rows),
        "same_texts": sum(a == b for a, b in zip(one["answers"], other["answers"], strict=True)),
        "texts": [[a, b] for a, b in zip(one["texts"], other["texts"], strict=True)],
        "size": made.size,
        "source_size": source.size,
        "cost": {key: [one[key], other[key]] for key in keys},
    }


def _by_row(sums: Sequence[float], positions: Sequence[int]) -> tuple[float, float]:
    """The 95 % interval of a mean over positions, which are drawn a row at a time."""
    import numpy as np

    from tunekit.evaluate import statistics

    rows = np.array([sums, positions], dtype=np.float64).T
    found = statistics.bootstrap_interval(rows, statistics.weighted_mean, seed=0)
    return found.low, found.high


def judge(source: Measured, made: Measured, expected: float, *, exact: bool, odd: Sequence[Problem] = ()) -> None:
    """Holds an artefact to what it must be.

    Args:
        source: measured first.
        made: the artefact.
        expected: bytes by the arithmetic.
        exact: it may equal its source.
        odd: what is wrong with its tensors one by one.

    Raises:
        NotProvenError: everything that is wrong with it.
    """
    raise_all(NotProvenError, [*_faults(source, made, expected, exact), *odd])


def dearer(increase: Sequence[float], most: float | None, fix: str) -> Iterator[Problem]:
    """Perplexity that rises by more than is allowed.

    Args:
        increase: share, low, high.
        most: a share; None for any.
        fix: what makes it smaller.
    """
    value, low, high = increase
    if most is not None and not value <= most:
        what = f"perplexity rises by {value:.1%} ({low:.1%} to {high:.1%}); at most {most:.1%} is allowed"
        yield Problem(what, where="--max-ppl-increase", fix=fix)


def _faults(source: Measured, made: Measured, expected: float, exact: bool) -> Iterator[Problem]:
    one, other = source.values, made.values
    if not other["finite"]:
        yield Problem("its logits are not finite", fix="skip the layers that overflow, or take a kind of more bits")
        return
    if one["template"] is not None and other["template"] != one["template"]:
        lost = "is not inside" if other["template"] is None else "is not the source's"
        yield Problem(f"the chat template {lost}")
    missing = sorted(set(one["stops"]) - set(other["stops"]))
    if missing:
        yield Problem(f"it does not stop at the ids {missing} that end the source's answers")
    if other["spelling"] is not None:
        yield Problem(f"it cuts a text into other tokens than the source: {other['spelling'][:SPELLED]!r}")
    if not exact and other["largest_difference"] == 0 and made.size >= source.size:
        yield Problem("it equals its source, logit by logit, and is not smaller", fix="was anything changed?")
    if abs(made.size - expected) > SIZE * expected:
        yield Problem(f"its tensors take {made.size:,} bytes; the bits of their weights come to {expected:,.0f}",
                      fix="were layers left out that should not be?")  # fmt: skip
