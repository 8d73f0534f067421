"""Rollouts: what a policy answered to prompts, what the answers were worth, and how they are kept in a checkpoint."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunekit.core.types import IGNORED
from tunekit.data.groups import asked_of
from tunekit.rl.contract import Answer

FILE, _FACTS = "rollouts.safetensors", "facts"
EACH = ("old", "reference", "values", "returns", "advantages")
"""Numbers that an answer has for each of its tokens."""


@dataclass
class Drawn:
    """One answer.

    Args:
        ids: its tokens, the end token included where it came.
        ended: by an end token.
        text: without control tokens.
        reward: the sum that it is trained on.
        parts: the rewards by name, before they are weighted; nan where one does not apply.
        numbers: see `EACH`; a list of floats as long as ``ids``.
    """

    ids: list[int]
    ended: bool
    text: str
    reward: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    numbers: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Rollout:
    """The answers to one prompt: ``prompt`` are its tokens, ``rows`` its numbers in the ledger."""

    prompt: list[int]
    rows: list[int]
    answers: list[Drawn]


def asked(row: Mapping[str, Any], drawn: Drawn, where: str) -> Answer:
    """An answer as rewards see it.

    Args:
        row: the prepared prompt: ``prompt``, ``reference`` and ``columns``.
        drawn: what the policy answered.
        where: ``file:line`` of the row.
    """
    messages, columns = asked_of(row["columns"])
    return Answer(
        prompt=row["prompt"],
        messages=messages,
        text=drawn.text,
        tokens=len(drawn.ids),
        ended=drawn.ended,
        reference=row["reference"],
        columns=columns,
        where=where,
    )


def group_of(rollout: Rollout) -> dict[str, Any]:
    """A rollout as an example of a batch of groups, with the numbers of its tokens one after another."""
    ids, positions = list(rollout.prompt), list(range(len(rollout.prompt)))
    beginning = len(ids)
    for drawn in rollout.answers:
        ids += drawn.ids
        positions += range(beginning, beginning + len(drawn.ids))
    numbers = {
        name: [value for drawn in rollout.answers for value in drawn.numbers[name]]
        for name in EACH
        if rollout.answers and name in rollout.answers[0].numbers
    }
    return {
        "input_ids": ids,
        "labels": [IGNORED] * beginning + ids[beginning:],
        "position_ids": positions,
        "branches": [len(drawn.ids) for drawn in rollout.answers],
        "score": None,
        "rows": rollout.rows,
        "length": len(ids),
        "numbers": numbers,
    }


def save_rollouts(folder: Path, rollouts: Mapping[int, Rollout]) -> None:
    """Writes rollouts into a checkpoint, by the index of their prompts."""
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    facts = []
    for index, rollout in rollouts.items():
        for place, drawn in enumerate(rollout.answers):
            for name, values in drawn.numbers.items():
                tensors[f"{index}.{place}.{name}"] = torch.tensor(values, dtype=torch.float32)
        facts.append(
            {
                "index": index,
                "prompt": rollout.prompt,
                "rows": rollout.rows,
                "answers": [
                    {"ids": d.ids, "ended": d.ended, "text": d.text, "reward": d.reward, "parts": d.parts}
                    for d in rollout.answers
                ],
            }
        )
    # not as metadata: a file's header has to be below 100 MB, which a million tokens may be
    tensors[_FACTS] = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
    save_file(tensors, folder / FILE)


def load_rollouts(folder: Path) -> dict[int, Rollout]:
    """Reads what `save_rollouts` wrote; empty where there is none."""
    from safetensors import safe_open

    found: dict[int, Rollout] = {}
    if not (folder / FILE).exists():
        return found
    with safe_open(str(folder / FILE), "pt") as file:
        for fact in json.loads(file.get_tensor(_FACTS).numpy().tobytes()):
            answers = [Drawn(**answer) for answer in fact["answers"]]
            found[fact["index"]] = Rollout(fact["prompt"], fact["rows"], answers)
        for key in set(file.keys()) - {_FACTS}:
            index, place, name = key.split(".")
            found[int(index)].answers[int(place)].numbers[name] = file.get_tensor(key).tolist()
    return found


def means(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """What is told of a rollout: means of rewards, by part, and of lengths; the share of answers that ended."""
    answers = [drawn for rollout in rollouts for drawn in rollout.answers]
    found = {
        "reward": _mean([drawn.reward for drawn in answers]),
        "answer_tokens": _mean([len(drawn.ids) for drawn in answers]),
        "ended_share": _mean([float(drawn.ended) for drawn in answers]),
    }
    rewards = [[drawn.reward for drawn in rollout.answers] for rollout in rollouts]
    found["reward_spread"] = _mean([_deviation(group) for group in rewards])
    for name in answers[0].parts if answers else ():
        applied = [drawn.parts[name] for drawn in answers if drawn.parts[name] == drawn.parts[name]]
        if applied:
            found[f"reward/{name}"] = _mean(applied)
    return found


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
