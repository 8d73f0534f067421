"""rollouts.jsonl: answers that a policy gave while it was trained, read for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekit.core.errors import UserError
from tunekit.runs.wording import as_float


@dataclass(frozen=True, slots=True)
class SampledAnswer:
    """One answer; a number or a mark that the line does not hold is None.

    Args:
        step: the first of the steps that learnt from it.
        prompt: as shown to a reader.
        reference: the right answer, empty where there is none.
        answer: what the policy wrote.
        reward: the sum that it was trained on.
        parts: the rewards by name before they are weighted; nan or None where one does not apply.
        kl: nats from the reference model, over the whole answer.
        tokens: of the answer.
        ended: by itself, not by the limit of its length.
    """

    step: float
    prompt: str
    reference: str
    answer: str
    reward: float | None
    parts: Mapping[str, float | None]
    kl: float | None
    tokens: float | None
    ended: bool | None


def read_rollouts(path: Path, most: int) -> tuple[list[SampledAnswer], int]:
    """At most ``most`` answers spread evenly over the file, and how many it holds; none when there is no file.

    A last line without its newline was torn by a crash and is left out.

    Raises:
        UserError: a line that is wanted is damaged.
    """
    if not path.exists():
        return [], 0
    with path.open("rb") as file:
        total = sum(line.endswith(b"\n") for line in file)
    wanted = range(total) if total <= most else {round(i * (total - 1) / max(1, most - 1)) for i in range(most)}
    with path.open("rb") as file:
        found = [_answer(line, f"{path}:{at + 1}") for at, line in enumerate(file) if at in wanted]
    return found, total


def _answer(line: bytes, where: str) -> SampledAnswer:
    try:
        row = json.loads(line)
    except ValueError as error:  # not JSON, or not UTF-8
        raise UserError(f"damaged rollouts: {error}", where=where, fix="remove that line") from error
    if not isinstance(row, dict) or as_float(row.get("step")) is None:
        raise UserError("damaged rollouts: not an answer with its step", where=where, fix="remove that line")
    parts, ended = row.get("parts"), row.get("ended")
    return SampledAnswer(
        step=as_float(row["step"]) or 0.0,
        prompt=_text(row.get("prompt")),
        reference=_text(row.get("reference")),
        answer=_text(row.get("answer")),
        reward=as_float(row.get("reward")),
        parts={name: as_float(value) for name, value in parts.items()} if isinstance(parts, dict) else {},
        kl=as_float(row.get("kl")),
        tokens=as_float(row.get("tokens")),
        ended=ended if isinstance(ended, bool) else None,
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
