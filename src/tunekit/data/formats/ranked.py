"""A prompt with several answers, scored or ranked: {prompt, answers: [...], scores? or ranks?, system?, tools?}.

Every two answers of different score make a pair (as Ouyang et al. 2022, arXiv 2203.02155, take all of them); those of
the same score make none. ``scores``: the higher, the better, and the margin is their difference. ``ranks``: the lower,
the better, without a margin. With neither, the answers stand in their order, best first. An answer is a text, a list
of messages, or an object {text, content, response or answer; score or rank}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from tunekit.core.types import Example, Material, Message, Pair, RowError
from tunekit.data.columns import field, required, shown
from tunekit.data.conversation import with_system
from tunekit.data.messages import turns_in
from tunekit.data.pairing import answered, conversation_with, number_of
from tunekit.data.readers.record import kind
from tunekit.data.toolcalls import tools_in

GIVES: Material = "pairs"
PRECEDENCE = 16
FIELDS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "instruction"),
    "answers": ("answers", "responses", "completions"),
    "scores": ("scores", "score"),
    "ranks": ("ranks", "rank"),
    "system": ("system",),
    "tools": ("tools",),
}
REQUIRED = ("prompt", "answers")
TEXTS = ("text", "content", "response", "answer")


def matches(row: Mapping[str, Any]) -> bool:
    """True for a prompt and a list of answers with a list of scores or ranks, or with one in each answer."""
    answers = next((row[name] for name in FIELDS["answers"] if name in row), None)
    if not isinstance(answers, list | tuple) or len(answers) < 2 or not any(name in row for name in FIELDS["prompt"]):
        return False
    beside = [row[name] for name in (*FIELDS["scores"], *FIELDS["ranks"]) if name in row]
    if any(isinstance(values, list | tuple) and len(values) == len(answers) for values in beside):
        return True
    return all(isinstance(answer, Mapping) and ("score" in answer or "rank" in answer) for answer in answers)


def to_example(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[Pair, ...]:
    """The pairs of a row, in the order of the answers.

    Raises:
        RowError: the column or answer that is wrong, and why; or no two answers differ in score.
    """
    names = FIELDS["answers"]
    listed, where = required(row, columns, "answers", names), f"column '{shown(row, columns, 'answers', names)}'"
    if not isinstance(listed, list | tuple) or len(listed) < 2:
        found = f"{len(listed)} of them" if isinstance(listed, list | tuple) else kind(listed)
        raise RowError(f"{where}: a list of two or more answers expected, found {found}")
    prompt = turns_in(row, columns, "prompt", FIELDS["prompt"], "user")
    tools = tools_in(row, columns, FIELDS["tools"])

    def complete(turns: Sequence[Message]) -> tuple[Message, ...]:
        return with_system(turns, row, columns, FIELDS["system"])

    examples = [
        Example(answered(conversation_with(prompt, _said(answer), name), complete, name, f"{name}: "), tools)
        for name, answer in ((f"answer {n}", answer) for n, answer in enumerate(listed, start=1))
    ]
    worth, margins = _worth(row, columns, listed)
    pairs = []
    for a, b in combinations(range(len(examples)), 2):
        if worth[a] != worth[b]:
            good, bad = (a, b) if worth[a] > worth[b] else (b, a)
            pairs.append(Pair(examples[good], examples[bad], worth[good] - worth[bad] if margins else None))
    if not pairs:
        raise RowError("all answers are of the same score: none of them is better")
    return tuple(pairs)


def _said(answer: Any) -> Any:
    """The answer itself, out of an object that holds its score beside it."""
    if isinstance(answer, Mapping) and "role" not in answer:
        return next((answer[name] for name in TEXTS if name in answer), answer)
    return answer


def _worth(row: Mapping[str, Any], columns: Mapping[str, str], answers: Sequence[Any]) -> tuple[list[float], bool]:
    """What each answer is worth, the more the better, and whether differences of it mean anything."""
    for name, inside, sign in (("scores", "score", 1.0), ("ranks", "rank", -1.0)):
        values = field(row, columns, name, FIELDS[name])
        where = f"column '{shown(row, columns, name, FIELDS[name])}'"
        if values is None and any(isinstance(answer, Mapping) and inside in answer for answer in answers):
            values = [answer.get(inside) if isinstance(answer, Mapping) else None for answer in answers]
            where = f"'{inside}' of an answer"
        if values is None:
            continue
        if not isinstance(values, list | tuple) or len(values) != len(answers):
            found = f"{len(values)}" if isinstance(values, list | tuple) else kind(values)
            raise RowError(f"{where}: one number for each of the {len(answers)} answers expected, found {found}")
        return [sign * number_of(value, where) for value in values], name == "scores"
    return [-float(place) for place in range(len(answers))], False
