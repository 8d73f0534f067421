"""One model measured in a fresh process, as its users load it: the source first, then what was made of it.

The source's logits are kept at chosen positions, (positions, V) float32 a row; what is measured after it is compared
with them.
"""

from __future__ import annotations

import importlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from tunekit.core.errors import MachineError
from tunekit.core.files import write_json

if TYPE_CHECKING:
    import numpy as np

    from tunekit.compress.contract import Reading

T = TypeVar("T")

NUMBERS = 1 << 28
"""Logits of the source that are kept on the disk for the comparison, which bounds the positions of a row: 1 GiB."""
FEWEST = 8  # positions of a row that are compared, however large the vocabulary
SPEED_ROWS = 8
PASSES, SHORT = 3, 2.0
"""A pass that took fewer seconds than these is done so often, and the median counts."""
FACTS = "reference.json"


def work(job: Mapping[str, Any]) -> dict[str, Any]:
    """Loads ``folder`` with ``runtime`` and measures it on ``rows`` (ids, trained, prompt).

    Args:
        job: ``runtime``, ``folder``, ``threads``, ``rows``, ``prompts`` (how many are answered), ``new_tokens``,
            ``reference`` (a folder) and ``first``: whether the reference is to be written, or compared with.

    Returns:
        ``load_seconds``, ``vocabulary``, ``losses`` and ``tokens`` (sum of negative log-likelihoods and count, a row),
        ``prompt_speed``, ``answer_speed`` (tokens a second, see `timed`), ``texts``, ``answers`` (ids), ``stops``,
        ``template``, ``finite``; and of one that is compared ``kl`` and ``agreeing`` (sums a row), ``positions``
        (a row), ``largest_difference``, ``spelling`` (the first text whose ids differ, or None).
    """
    runtime: Any = importlib.import_module(f"tunekit.compress.runtimes.{job['runtime']}")
    for library in runtime.LIBRARIES:  # their import is no matter of the model
        importlib.import_module(library)
    begin = time.perf_counter()
    reading: Reading = runtime.load(Path(job["folder"]), threads=job["threads"])
    seconds = time.perf_counter() - begin
    place = Path(job["reference"])
    answer: dict[str, Any] = {"load_seconds": seconds, "vocabulary": reading.vocabulary, "stops": reading.stops()}
    answer["template"] = reading.template()
    answer |= _likelihoods(reading, job["rows"], place, first=job["first"])
    answer |= _spoken(reading, job["rows"][: job["prompts"]], job["new_tokens"])
    longest = sorted(job["rows"], key=lambda row: -len(row["input_ids"]))[:SPEED_ROWS]
    last = [(row["input_ids"], [len(row["input_ids"]) - 1]) for row in longest]
    taken, _ = timed(lambda: [reading.logits(ids, at) for ids, at in last])
    answer["prompt_speed"] = sum(len(ids) for ids, _ in last) / taken
    if job["first"]:
        # as they are read, with what begins them: some tokenizers cut the first word of a bare text in another way
        texts = [reading.detokenize(row["input_ids"], special=True) for row in job["rows"]]
        kept = {"texts": texts, "ids": [reading.tokenize(text) for text in texts], "vocabulary": reading.vocabulary}
        write_json(place / FACTS, kept)
    else:
        answer["spelling"] = _misspelled(reading, _kept(place))
    return answer


def _likelihoods(reading: Reading, rows: Sequence[Mapping[str, Any]], place: Path, *, first: bool) -> dict[str, Any]:
    import numpy as np

    losses, counts, divergences, same, positions = [], [], [], [], []
    largest, finite = 0.0, True
    vocabulary = reading.vocabulary if first else _kept(place)["vocabulary"]  # a format may pad it
    most = max(FEWEST, NUMBERS // (vocabulary * len(rows)))
    for number, row in enumerate(rows):
        ids, columns = row["input_ids"], list(range(len(row["input_ids"]) - 1))
        logits = reading.logits(ids, columns)
        finite = finite and bool(np.isfinite(logits).all())
        wanted = [column for column in columns if row["trained"][column + 1]] or columns
        at = np.array(wanted)
        losses.append(_finite(-_log_likelihoods(logits[at], np.array(ids)[at + 1]).sum()))
        counts.append(len(wanted))
        step = max(1, math.ceil(len(columns) / most))
        chosen = logits[number % step :: step]  # not always the last one, which is easy: the end of a turn
        if first:
            np.save(place / f"{number}.npy", chosen)
            continue
        kept = np.load(place / f"{number}.npy", mmap_mode="r")
        divergence, agreeing, difference = compared(kept, chosen)
        divergences.append(divergence)
        same.append(agreeing)
        positions.append(len(kept))
        largest = max(largest, difference)
    found: dict[str, Any] = {"losses": losses, "tokens": counts, "finite": finite}
    if not first:
        found |= {"kl": divergences, "agreeing": same, "positions": positions, "largest_difference": largest}
    return found


def _finite(value: Any) -> float:
    return float(value) if math.isfinite(value) else math.inf


def _log_likelihoods(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each label under its row of (n, V) logits, in float64."""
    import numpy as np

    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    found: np.ndarray = shifted[np.arange(len(labels)), labels] - np.log(np.exp(shifted).sum(axis=-1))
    return found


def compared(one: np.ndarray, other: np.ndarray) -> tuple[float, int, float]:
    """Two models' logits at the same positions, (n, V).

    Returns:
        The sum of KL divergences (of ``other`` from ``one``, nats), at how many positions the likeliest token is the
        same, the largest difference of a logit. Numbers that are not finite are infinite.
    """
    import numpy as np

    width = min(one.shape[1], other.shape[1])  # a format may pad the vocabulary
    a, b = (logits[:, :width].astype(np.float64) for logits in (one, other))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf, int((a.argmax(-1) == b.argmax(-1)).sum()), math.inf
    log_a, log_b = (x - x.max(-1, keepdims=True) for x in (a, b))
    log_a, log_b = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (log_a, log_b))
    divergence = float((np.exp(log_a) * (log_a - log_b)).sum())
    return max(0.0, divergence), int((a.argmax(-1) == b.argmax(-1)).sum()), float(np.abs(a - b).max())


def timed(work: Callable[[], list[T]], clock: Callable[[], float] = time.perf_counter) -> tuple[float, list[T]]:
    """Seconds of a pass, the median of `PASSES` where the first one was short, and what the first one gave."""
    taken, first = _once(work, clock)
    more = [_once(work, clock)[0] for _ in range(PASSES - 1)] if taken < SHORT else []
    return median([taken, *more]), first


def _once(work: Callable[[], list[T]], clock: Callable[[], float]) -> tuple[float, list[T]]:
    begin = clock()
    found = work()
    return clock() - begin, found


def _spoken(reading: Reading, rows: Sequence[Mapping[str, Any]], new_tokens: int) -> dict[str, Any]:
    stops = reading.stops()
    seconds, answers = timed(lambda: [reading.answer(row["prompt_ids"], new_tokens, stops) for row in rows])
    return {
        "answers": answers,
        "texts": [reading.detokenize(ids) for ids in answers],
        "answer_speed": sum(map(len, answers)) / seconds if answers else 0.0,
    }


def _kept(place: Path) -> dict[str, Any]:
    """What was kept of the source.

    Raises:
        MachineError: it cannot be read.
    """
    try:
        found: dict[str, Any] = json.loads((place / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MachineError("what was kept of the source cannot be read", where=str(place), fix="again?") from error
    return found


def _misspelled(reading: Reading, kept: Mapping[str, Any]) -> str | None:
    """The first of the source's texts that the artefact cuts into other tokens; None where there is none."""
    pairs = zip(kept["texts"], kept["ids"], strict=True)
    return next((text for text, ids in pairs if reading.tokenize(text) != ids), None)
