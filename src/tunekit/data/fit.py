"""Examples to rows of tokens that fit: rendered, encoded, labelled, and cut to the longest length allowed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from tunekit.core.types import IGNORED, Encoded, Example, Learnt, Material, Message, RowError
from tunekit.data.encode import RowEncoder
from tunekit.data.gate import NO_END
from tunekit.data.render import Rendered, Renderer

UNLIMITED = 1 << 30


@dataclass(frozen=True)
class TokenFacts:
    """What the data needs to know of a model before it is loaded: its tokenizer's hash, embedding rows and BOS."""

    tokenizer_hash: str
    vocabulary: int
    bos_id: int | None


@dataclass(frozen=True)
class Encoding:
    """What became of one input row: its rendered text, its tokens, and the rows of tokens to train on.

    ``examples`` hold the columns of `store.row_schema` but the ledger number; a long document gives several. When
    ``lost`` says why there are none, ``overlong`` tells whether the length is the reason. When only some of a row's
    pairs are lost, ``partly`` says which. ``prompt``: rows of the same are held out together; empty for the text.
    """

    text: str
    tokens: int
    examples: tuple[dict[str, Any], ...] = ()
    lost: str = ""
    detail: str = ""
    overlong: bool = False
    partly: str = ""
    prompt: str = ""

    @property
    def drawn_by(self) -> str:
        """The text by which rows are drawn for evaluation: rows that are alike in it stay on one side."""
        return self.prompt or self.text

    @property
    def why_less(self) -> str:
        """Why not everything stays; empty when it does."""
        if self.partly:
            return "some of its answers cannot be used"
        return "cut at data.max_length" if self.stay < self.tokens else ""

    @property
    def stay(self) -> int:
        """The tokens of ``examples``."""
        return sum(len(row["input_ids"]) for row in self.examples)

    @property
    def labelled(self) -> int:
        """Those of them with a label."""
        return sum(len(row["labels"]) - row["labels"].count(IGNORED) for row in self.examples)


class Fitter:
    """Turns texts and conversations into rows of at most ``max_length`` tokens; other material has fitters of its own.

    Args:
        renderer: renders conversations, with what is trained.
        facts: of the model that will be trained.
        max_length: longest row in tokens.
        overlong: what happens to longer examples (``truncate``, ``drop``, ``error``). Truncating cuts plain text into
            several rows: nothing of a document is lost.
        isolated: whether packed examples must not see each other.
    """

    material: Material = "texts"

    def __init__(self, renderer: Renderer, facts: TokenFacts, max_length: int, overlong: str, isolated: bool) -> None:
        self.renderer, self.encoder, self.facts = renderer, RowEncoder(renderer.tokenizer), facts
        self.max_length, self.overlong, self.isolated = max_length, overlong, isolated

    @property
    def template_hash(self) -> str:
        """Identifies the chat template."""
        return self.renderer.template_hash

    def uncut(self) -> Fitter:
        """The same fitter without a longest length."""
        other = copy(self)
        other.max_length = UNLIMITED
        return other

    def encode(self, rows: Sequence[Learnt]) -> list[Encoding | str]:
        """Encodes a batch of examples; one that cannot be rendered gives the reason instead."""
        examples = [row for row in rows if isinstance(row, Example)]
        assert len(examples) == len(rows), "only texts and conversations"
        return [
            found if isinstance(found, str) else self._fit(found[1], example, found[0])
            for found, example in zip(self.tokenized(examples), examples, strict=True)
        ]

    def tokenized(
        self, examples: Sequence[Example], generation_prompt: bool = False
    ) -> list[tuple[Rendered, Encoded] | str]:
        """Renders and encodes a batch whole; an example that cannot be rendered gives the reason instead."""
        results: list[Rendered | str] = []
        for example in examples:
            try:
                results.append(self.renderer.render(example, generation_prompt))
            except RowError as error:
                results.append(str(error))
        encoded = iter(self.encoder.encode([item for item in results if isinstance(item, Rendered)]))
        return [item if isinstance(item, str) else (item, next(encoded)) for item in results]

    def _fit(self, encoded: Encoded, example: Example, rendered: Rendered) -> Encoding:
        size, limit = len(encoded.input_ids), self.max_length
        if not any(encoded.trained[1:]):
            return Encoding(encoded.text, size, lost="no text of the row is trained")
        if size > limit and self.overlong != "truncate":
            words = f"{size:,} tokens, {limit:,} are allowed"
            return Encoding(encoded.text, size, lost="longer than data.max_length", detail=words, overlong=True)
        if rendered.document:
            return Encoding(encoded.text, size, tuple(self._row(encoded, a, b) for a, b in pieces(size, limit)))
        if not any(encoded.trained[1:limit]):
            words = f"{size:,} tokens, the answer begins after {encoded.prompt_tokens:,}, {limit:,} are allowed"
            return Encoding(
                encoded.text, size, lost="no trained token within data.max_length", detail=words, overlong=True
            )
        row = self._row(encoded, 0, min(size, limit))
        if size <= limit and len(encoded.turn_ends) < trained_turns(rendered):
            row["turn_ends"].append(NO_END)
        row |= _asked(example, rendered)
        return Encoding(encoded.text, size, (row,))

    @staticmethod
    def _row(encoded: Encoded, begin: int, end: int) -> dict[str, Any]:
        ids = list(encoded.input_ids[begin:end])
        return {
            "length": len(ids),
            "input_ids": ids,
            "labels": labels_of(ids, encoded.trained[begin:end]),
            "turn_ends": [at - begin for at in encoded.turn_ends if begin <= at < end and at > begin],
            "truncated": end < len(encoded.input_ids),
            "prompt_tokens": encoded.prompt_tokens,
            "prompt": "",
            "reference": "",
            "branches": None,
            "score": None,
            "columns": None,
        }


def turn_end(fitter: Fitter) -> int | None:
    """The id of the token that ends an assistant turn in the chat template; None without a template."""
    if fitter.renderer.tokenizer.chat_template is None:
        return None
    probe = Example((Message("user", "a"), Message("assistant", "b")))
    found = fitter.tokenized([probe])[0]
    if isinstance(found, str) or not found[1].turn_ends:
        return None
    return found[1].input_ids[found[1].turn_ends[-1]]


def labels_of(ids: list[int], trained: Sequence[bool]) -> list[int]:
    """The tokens that are trained, IGNORED in the place of others and of the first, which nothing predicts."""
    labels, mask, last = [IGNORED] * len(ids), bytes(trained), 1
    while (first := mask.find(1, last)) >= 0:  # run by run: a row has few
        last = mask.find(0, first)
        last = len(ids) if last < 0 else last
        labels[first:last] = ids[first:last]
    return labels


def trained_turns(rendered: Rendered) -> int:
    """How many assistant turns have trained text."""
    return sum(any(b < turn.end and turn.start < e for b, e in rendered.trained) for turn in rendered.turns)


def pieces(size: int, limit: int) -> list[tuple[int, int]]:
    """Cuts ``size`` tokens into runs of at most ``limit``, none of them a lone token (it would have no label)."""
    cuts = [*range(0, size, limit), size]
    if len(cuts) > 2 and cuts[-1] - cuts[-2] == 1:
        cuts[-2] -= 1
    return list(itertools.pairwise(cuts))


def _asked(example: Example, rendered: Rendered) -> dict[str, str]:
    """The last trained answer (what generation is compared with), and the turns before it as shown to people."""
    trained = [t for t in rendered.turns if any(b < t.end and t.start < e for b, e in rendered.trained)]
    turn = (trained or list(rendered.turns))[-1]
    return {
        "prompt": shown(example.messages[: turn.message]),
        "reference": example.messages[turn.message].content,
    }


def shown(turns: Sequence[Message]) -> str:
    """Turns as shown to people: one alone without its role."""
    return turns[0].content if len(turns) == 1 else "\n".join(f"{turn.role}: {turn.content}" for turn in turns)
