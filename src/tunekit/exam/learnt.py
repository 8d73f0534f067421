"""What a model learnt from the rows of its training data, as conversations; also where its method wrote the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tunekit.core import types
from tunekit.data.ledger import Ledger
from tunekit.data.prepare import Prepared


def conversations(learnt: types.Learnt | str, written: Sequence[str] | None = None) -> list[types.Example]:
    """What was learnt from a row, each answer as a conversation (or text); a prompt with the right answer, if any.

    ``written``: answers that were learnt in the place of the right one.
    """
    if isinstance(learnt, str):
        return []
    if isinstance(learnt, types.Example):
        return [learnt]
    if isinstance(learnt, types.Judged):
        return [learnt.example]
    if isinstance(learnt, types.Question):
        asked = learnt.example
        right = [learnt.reference] if learnt.reference and asked.messages else []
        return [_answered(asked, answer) for answer in (right if written is None else written)] or [asked]
    return list(dict.fromkeys(side for pair in learnt for side in (pair.chosen, pair.rejected)))


def _answered(asked: types.Example, answer: str) -> types.Example:
    if not asked.messages:
        return replace(asked, text=asked.text + answer)
    return replace(asked, messages=(*asked.messages, types.Message("assistant", answer)))


def written_answers(prepared: Prepared, tokenizer: Any, split: types.Split) -> dict[str, list[str]] | None:
    """Answers that a method wrote and that stand in the place of the data's, by the place of their rows.

    None where the prompts have no answers yet: a policy's own are drawn as it trains.

    Args:
        prepared: prompts, as the method wants them.
        tokenizer: the model's.
        split: whose rows.
    """
    ledger, found = Ledger.load(prepared.ledger_path), dict[str, list[str]]()
    for row in prepared.dataset(split) or ():
        values: dict[str, Any] = row  # type: ignore[assignment]
        if values["branches"] is not None:
            return None
        answer = tokenizer.decode(values["input_ids"][values["prompt_tokens"] :], skip_special_tokens=True)
        for number in values["rows"]:
            found.setdefault(str(ledger[number].origin), []).append(answer)
    return found
