"""Preference data and prompts as rows of tokens: a shared beginning, and the answers that each go on from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from tunekit.core.types import IGNORED, Encoded, Example, Judged, Learnt, Material, Message, Pair, Question
from tunekit.data.fit import Encoding, Fitter, TokenFacts, labels_of, shown, trained_turns
from tunekit.data.gate import NO_END
from tunekit.data.render import Rendered, Renderer
from tunekit.data.spans import common_prefix

SEPARATOR = "\x1e"
"""Stands between the texts of a row's sequences."""


class Group(NamedTuple):
    """Conversations that are alike but for the last answer, the better one first; and the row's ``score``."""

    members: tuple[Example, ...]
    score: float | None


class GroupFitter(Fitter):
    """Turns pairs and judged answers into groups of at most ``max_length`` tokens a sequence.

    The last answer is trained, with its end-of-turn token, whatever the recipe and the turns themselves say. The
    beginning that the sequences of a group share is stored once: what all of them have before the answer. Rows with
    the same prompt are drawn for evaluation together, so that no prompt is both trained and held out.

    Args:
        material: ``pairs`` or ``judged``; of a pair the latter takes one answer as good and the other as bad.
        renderer: renders conversations.
        facts: of the model that will be trained.
        max_length: longest sequence in tokens, the beginning included.
        overlong: what happens to longer ones (``truncate``, ``drop``, ``error``).
    """

    def __init__(
        self, material: Material, renderer: Renderer, facts: TokenFacts, max_length: int, overlong: str
    ) -> None:
        super().__init__(renderer.learning("last_turn"), facts, max_length, overlong, isolated=True)
        self.material = material

    def encode(self, rows: Sequence[Learnt]) -> list[Encoding | str]:
        """Encodes a batch of rows; one that cannot be rendered gives the reason instead."""
        groups = [self._groups(row) for row in rows]
        members = {id(member): member for row in groups for group in row for member in group.members}  # each once
        found = self.tokenized([_unmarked(member) for member in members.values()])
        by_member = dict(zip(members, found, strict=True))
        return [_joined([self._fitted(group, by_member) for group in row]) for row in groups]

    def _groups(self, row: Learnt) -> list[Group]:
        if isinstance(row, Judged):
            return [Group((row.example,), float(row.good))]
        assert isinstance(row, tuple), row
        if self.material == "pairs":
            return [Group((pair.chosen, pair.rejected), pair.margin) for pair in row]
        return [Group((example,), float(good)) for example, good in _verdicts(row)]

    def _fitted(self, group: Group, found: dict[int, tuple[Rendered, Encoded] | str]) -> Encoding | str:
        fault = _fault(group)
        if fault is not None:
            return fault
        both: list[tuple[Rendered, Encoded]] = []
        for member in group.members:
            one = found[id(member)]
            if isinstance(one, str):
                return one
            both.append(one)
        return self._fit_group(group, [rendered for rendered, _ in both], [encoded for _, encoded in both])

    def _fit_group(self, group: Group, rendered: Sequence[Rendered], encoded: Sequence[Encoded]) -> Encoding:
        shared = min(
            common_prefix(encoded[0].input_ids, encoded[-1].input_ids), *(one.prompt_tokens for one in encoded)
        )
        sizes, limit = [len(one.input_ids) for one in encoded], self.max_length
        longest, last = max(sizes), group.members[0].messages
        whole = Encoding(
            SEPARATOR.join(one.text for one in encoded),
            shared + sum(size - shared for size in sizes),
            prompt=shown(last[:-1]),
        )
        if _same(encoded, longest):
            return replace(whole, lost="chosen and rejected are the same", detail="as the chat template writes them")
        if shared < 1:
            return replace(whole, lost="the chat template writes nothing before the answer that both have")
        if longest > limit and self.overlong != "truncate":
            words = f"{longest:,} tokens, {limit:,} are allowed"
            return replace(whole, lost="longer than data.max_length", detail=words, overlong=True)
        late = [one for one in encoded if not any(one.trained[shared:limit])]
        if late:
            words = f"the answer begins after {late[0].prompt_tokens:,} tokens, {limit:,} are allowed"
            return replace(whole, lost="no trained token within data.max_length", detail=words, overlong=True)
        if _same(encoded, limit):
            words = f"they are alike in the first {limit:,} tokens"
            lost = "chosen and rejected differ only past data.max_length"
            return replace(whole, lost=lost, detail=words, overlong=True)
        row = _row(rendered, encoded, shared, limit)
        row |= {"prompt": whole.prompt, "reference": last[-1].content, "score": group.score}
        return replace(whole, examples=(row,))


class PromptFitter(Fitter):
    """Turns prompts into rows: the conversation with the prompt of the next assistant turn, or plain text to continue.

    Nothing is trained, and nothing is cut: a prompt longer than ``max_length`` is lost.
    """

    material: Material = "prompts"

    def encode(self, rows: Sequence[Learnt]) -> list[Encoding | str]:
        """Encodes a batch of prompts; one that cannot be rendered gives the reason instead."""
        asked = [row for row in rows if isinstance(row, Question)]
        assert len(asked) == len(rows), "only prompts"
        found = self.tokenized([row.example for row in asked], generation_prompt=True)
        return [
            one if isinstance(one, str) else self._fit_prompt(question, *one)
            for one, question in zip(found, asked, strict=True)
        ]

    def _fit_prompt(self, question: Question, rendered: Rendered, encoded: Encoded) -> Encoding:
        ids = list(encoded.input_ids[:-1] if rendered.document else encoded.input_ids)  # a document's end is no prompt
        if not ids:
            return Encoding(encoded.text, 0, lost="the prompt has no token")
        if len(ids) > self.max_length:
            words = f"{len(ids):,} tokens, {self.max_length:,} are allowed"
            lost = "the prompt is longer than data.max_length"
            return Encoding(encoded.text, len(ids), lost=lost, detail=words, overlong=True)
        row = {
            "length": len(ids),
            "input_ids": ids,
            "labels": [IGNORED] * len(ids),
            "turn_ends": [],
            "truncated": False,
            "prompt_tokens": len(ids),
            "prompt": shown(question.example.messages) or question.example.text,
            "reference": question.reference,
            "branches": [],
            "score": None,
            "columns": _kept(question),
        }
        return Encoding(encoded.text, len(ids), (row,))


def _kept(question: Question) -> str:
    """The turns of a prompt and its row's own values, as JSON; `asked_of` reads them."""
    turns = [asdict(turn) for turn in question.example.messages]
    return json.dumps({"messages": turns, "columns": dict(question.columns)}, default=str)


def asked_of(kept: str) -> tuple[tuple[Message, ...], dict[str, Any]]:
    """The turns of a prepared prompt, and its row's own values.

    Args:
        kept: its column ``columns``.
    """
    value = json.loads(kept)
    turns = [turn | {"tool_calls": tuple(turn["tool_calls"])} for turn in value["messages"]]
    return tuple(Message(**turn) for turn in turns), value["columns"]


def make_fitter(
    material: Material, renderer: Renderer, facts: TokenFacts, max_length: int, overlong: str, isolated: bool
) -> Fitter:
    """The fitter of a material.

    Args:
        material: what the method learns from.
        renderer: renders conversations, with what of texts is trained.
        facts: of the model that will be trained.
        max_length: longest row of texts, longest sequence of preference data, or longest prompt, in tokens.
        overlong: what happens to longer ones.
        isolated: whether packed texts must not see each other.
    """
    if material == "texts":
        return Fitter(renderer, facts, max_length, overlong, isolated)
    if material == "prompts":
        return PromptFitter(renderer, facts, max_length, overlong, isolated=True)
    return GroupFitter(material, renderer, facts, max_length, overlong)


def _unmarked(example: Example) -> Example:
    """Without the turns' own wishes about what is trained."""
    return replace(example, messages=tuple(replace(turn, train=None) for turn in example.messages))


def _verdicts(pairs: Sequence[Pair]) -> Iterator[tuple[Example, bool]]:
    """The answers that are better in every pair that they are in, and those that are worse in every one."""
    chosen, rejected = ({id(one): one for one in side} for side in zip(*((p.chosen, p.rejected) for p in pairs)))
    yield from ((example, True) for key, example in chosen.items() if key not in rejected)
    yield from ((example, False) for key, example in rejected.items() if key not in chosen)


def _fault(group: Group) -> Encoding | str | None:
    """What is wrong with a group before it is rendered."""
    if not all(member.messages for member in group.members):
        return "plain text has no answer that could be better or worse"
    (first, *others), before = group.members, group.members[0].messages[:-1]
    for other in others:
        if other == first:
            return "chosen and rejected are the same"
        pairs = zip(before, other.messages[:-1])
        parted = next((at for at, (a, b) in enumerate(pairs, start=1) if a != b), None)
        if parted is None and len(before) != len(other.messages) - 1:
            parted = min(len(before), len(other.messages) - 1) + 1
        if parted is not None:
            return Encoding("", 0, lost="the two dialogues differ before the last answer", detail=f"turn {parted}")
    return None


def _same(encoded: Sequence[Encoded], limit: int) -> bool:
    return len(encoded) > 1 and len({one.input_ids[:limit] for one in encoded}) == 1


def _row(rendered: Sequence[Rendered], encoded: Sequence[Encoded], shared: int, limit: int) -> dict[str, Any]:
    """The columns of a group that come from its tokens."""
    ids = list(encoded[0].input_ids[:shared])
    labels, turn_ends, branches = [IGNORED] * shared, list[int](), list[int]()
    for one, source in zip(encoded, rendered, strict=True):
        tokens, moved = list(one.input_ids[:limit]), len(ids) - shared
        ids += tokens[shared:]
        labels += labels_of(tokens, one.trained[:limit])[shared:]
        turn_ends += [at + moved for at in one.turn_ends if shared <= at < limit]
        if len(one.input_ids) <= limit and len(one.turn_ends) < trained_turns(source):
            turn_ends.append(NO_END)
        branches.append(len(tokens) - shared)
    return {
        "length": len(ids),
        "input_ids": ids,
        "labels": labels,
        "turn_ends": turn_ends,
        "truncated": any(len(one.input_ids) > limit for one in encoded),
        "prompt_tokens": shared,
        "branches": branches,
        "columns": None,
    }


def _joined(found: Sequence[Encoding | str]) -> Encoding | str:
    """One input row of what became of its groups; it is lost only when all of them are."""
    if len(found) == 1:
        return found[0]
    kept = [one for one in found if isinstance(one, Encoding) and one.examples]
    lost = [one for one in found if isinstance(one, str) or not one.examples]
    if not kept:
        return found[0]
    reason = (lost[0] if isinstance(lost[0], str) else lost[0].lost) if lost else ""
    return Encoding(
        SEPARATOR.join(one.text for one in found if isinstance(one, Encoding)),
        sum(one.tokens for one in found if isinstance(one, Encoding)),
        tuple(row for one in kept for row in one.examples),
        partly=f"{len(lost)} of {len(found)}: {reason}" if lost else "",
        prompt=kept[0].prompt,
    )
