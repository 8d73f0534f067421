"""Rendered examples to token ids with the label mask: batched, and a control token never comes from the data."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from tunekit.core.errors import UserError
from tunekit.core.types import Encoded
from tunekit.data.literals import Span, any_of, control_tokens
from tunekit.data.render import Rendered
from tunekit.data.spans import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = tuple[list[int], list[Span]]  # ids, and the characters that each of them stands for


class Places(NamedTuple):
    """The tokens of a row: ids, and where each stands in its text (beginnings and ends never decrease).

    ``at`` is asked for a few tokens only: fetching the places of all of them costs more than all that is done with
    them.
    """

    ids: list[int]
    at: Callable[[int], Span]

    def ended(self, position: int) -> int:
        """How many tokens end at or before a character."""
        return bisect_right(range(len(self.ids)), position, key=lambda token: self.at(token)[1])

    def begun(self, position: int) -> int:
        """How many tokens begin before a character."""
        return bisect_left(range(len(self.ids)), position, key=lambda token: self.at(token)[0])


class RowEncoder:
    """Tokenizes rendered examples.

    Args:
        tokenizer: a tokenizer that tells which characters each token stands for.

    Raises:
        UserError: the tokenizer cannot tell.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise UserError(
                f"the tokenizer ({type(tokenizer).__name__}) does not tell which characters a token stands for",
                fix="use a model with a tokenizer.json",
            )
        self.tokenizer = tokenizer
        names = control_tokens(tokenizer)
        self._control = any_of(names)
        self._ids = {tokenizer.convert_tokens_to_ids(name): name for name in names}
        self._added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}

    def encode(self, rows: Sequence[Rendered]) -> list[Encoded]:
        """Tokenizes rows in one batch; those that hold control-token strings of their own go piece by piece.

        Returns:
            One value a row. A token is trained iff its characters overlap trained characters.

        Raises:
            UserError: plain text and a tokenizer without an end-of-sequence token, or one that can write a string of
                the data in no other way than as a control token.
        """
        clean = [row.text for row in rows if not row.literals]
        batch = iter(self._batch(clean) if clean else ())
        return [self._encoded(row, self._pieces(row) if row.literals else next(batch)) for row in rows]

    def _batch(self, texts: Sequence[str], *, split: bool = False) -> list[Places]:
        out = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            split_special_tokens=split,
            verbose=False,
        )
        assert out.encodings is not None, type(self.tokenizer)
        both = zip(out["input_ids"], out.encodings, strict=True)
        return [Places(ids, encoding.token_to_chars) for ids, encoding in both]

    def _read(self, text: str, *, split: bool = False) -> Tokens:
        ids, at = self._batch([text], split=split)[0]
        return ids, [at(token) for token in range(len(ids))]

    def _encoded(self, row: Rendered, places: Places) -> Encoded:
        ids = places.ids
        if row.document:
            whole = (*self._beginning, *ids, self._end_of_text)
            return Encoded(whole, (True,) * len(whole), (len(whole) - 1,), 0, row.text)
        mask = [False] * len(ids)
        covered = {span: self._covered(row.text, places, span) for span in row.trained}
        for first, last in covered.values():
            mask[first:last] = [True] * (last - first)
        learned = [turn for turn in row.turns if any(b < turn.end and turn.start < e for b, e in row.trained)]
        stops = tuple(self._stop_positions(row.text, learned, places))
        prompt = len(ids)
        if row.turns:
            last_turn = (learned or row.turns)[-1]
            span = last_turn.start, last_turn.end
            prompt = (covered.get(span) or self._covered(row.text, places, span))[0]
        return Encoded(tuple(ids), tuple(mask), stops, prompt, row.text)

    def _covered(self, text: str, places: Places, span: Span) -> Span:
        """The tokens ``[first, last)`` whose characters overlap a span."""
        (ids, at), begin = places, span[0]
        first, last = places.ended(begin), places.begun(span[1])
        while first and at(first - 1) == (begin, begin) and begin == (at(first - 2)[1] if first > 1 else 0):
            first -= 1  # a token of no width at the beginning, when it is not a space cut off the token before
        while first < last and (start := at(first)[0]) < begin and self._written_before(text, ids[first], start, begin):
            first += 1
        return first, max(first, last)

    def _written_before(self, text: str, token: int, start: int, position: int) -> bool:
        """Whether a control token that swallows the white space behind it is itself written before ``position``."""
        name = self._ids.get(token)
        return name is not None and text.find(name, start) + len(name) <= position

    def _stop_positions(self, text: str, turns: Sequence[Turn], places: Places) -> Iterator[int]:
        """Positions of the end-of-turn tokens of ``turns``."""
        for turn in turns:
            if turn.stop is not None:
                position = places.ended(turn.stop[0])
                if places.ids[position] == self.tokenizer.convert_tokens_to_ids(text[slice(*turn.stop)]):
                    yield position

    @cached_property
    def _beginning(self) -> tuple[int, ...]:
        """What the tokenizer itself puts before a text, such as the beginning-of-sequence token."""
        with_special = self.tokenizer("a", verbose=False)["input_ids"]
        bare = self.tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
        at = next((i for i in range(len(with_special) + 1) if with_special[i : i + len(bare)] == bare), None)
        assert at is not None, (with_special, bare)
        return tuple(with_special[:at])

    @cached_property
    def _end_of_text(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token, so a text would have no end",
                            fix="use a tokenizer with an eos_token")  # fmt: skip
        return int(self.tokenizer.eos_token_id)

    def _pieces(self, row: Rendered) -> Places:
        """Tokenizes a row that holds control-token strings of its own.

        The text is cut at the template's control tokens. A section with such a string is read as if there were no
        special tokens at all; everything else is read as always.
        """
        ids: list[int] = []
        offsets: list[Span] = []
        for begin, end, own in self._sections(row):
            inner = [(b - begin, e - begin) for b, e in own]
            part = row.text[begin:end]
            more, where = self._section(part, inner, begin > 0) if own else self._read(part)
            ids += more
            offsets += [(begin + b, begin + e) for b, e in where]
        return Places(ids, offsets.__getitem__)

    def _sections(self, row: Rendered) -> list[tuple[int, int, list[Span]]]:
        """Cuts a text into sections ``(begin, end, literals)`` so that those with literals hold no control token."""
        tokens: list[Span] = []  # the template's own
        position = 0
        for begin, end in [*row.literals, (len(row.text), len(row.text))]:
            tokens += [self._wide(row.text, m.span()) for m in self._control.finditer(row.text, position, begin)]
            position = end
        sections: list[tuple[int, int, list[Span]]] = []
        begin = plain = 0
        for first, last in [*tokens, (len(row.text), len(row.text))]:
            own = [span for span in row.literals if begin <= span[0] < first]
            if own:
                sections += [(plain, begin, []), (begin, first, own)]
                plain = first
            begin = last
        return [s for s in [*sections, (plain, len(row.text), [])] if s[0] < s[1]]

    def _wide(self, text: str, span: Span) -> Span:
        """A control token with the white space that it swallows."""
        begin, end = span
        token = self._added.get(text[begin:end])
        if token is not None and token.lstrip:
            begin = len(text[:begin].rstrip())
        if token is not None and token.rstrip:
            end = len(text) - len(text[end:].lstrip())
        return begin, end

    def _section(self, text: str, literals: Sequence[Span], inside: bool) -> Tokens:
        tokens = self._as_text(text, inside)
        if not self._any_control(text, tokens, literals):
            return tokens
        cuts = [0, *(begin + 1 for begin, end in literals if end > begin + 1), len(text)]
        tokens = ([], [])
        for begin, end in pairwise(cuts):  # no part holds the whole of a string
            ids, offsets = self._as_text(text[begin:end], inside or begin > 0)
            tokens[0].extend(ids)
            tokens[1].extend((begin + b, begin + e) for b, e in offsets)
        if self._any_control(text, tokens, literals):
            raise UserError(f"the tokenizer can write {text[slice(*literals[0])]!r} only as a control token",
                            fix="take the string out of the data")  # fmt: skip
        return tokens

    def _any_control(self, text: str, tokens: Tokens, literals: Sequence[Span]) -> bool:
        """Whether one of the literals became the control token that it looks like."""
        suspects = [(self._ids[token], span) for token, span in zip(*tokens, strict=True) if token in self._ids]
        return any(name == text[b:e] and begin < e and b < end for name, (begin, end) in suspects for b, e in literals)

    def _as_text(self, text: str, inside: bool) -> Tokens:
        """Reads text as if there were no special tokens; ``inside``: it does not stand at the beginning of its row."""
        if not inside or not self._anchor:
            return self._read(text, split=True)
        ids, offsets = self._read(self._anchor + text, split=True)
        width = len(self._anchor)
        first = next((k for k, (_, end) in enumerate(offsets) if end > width), len(ids))
        return ids[first:], [(max(0, b - width), e - width) for b, e in offsets[first:]]

    @cached_property
    def _anchor(self) -> str:
        r"""What must precede a section so that it is read as in the middle of a text.

        Some tokenizers write a space before a text's first word only, so a section on its own would get one too.
        Behind a line break, which never joins with what follows in such tokenizers, it does not.
        """
        name = next((n for n in self._ids.values() if n not in {self.tokenizer.unk_token}), "")
        probe = "word"
        alone, _ = self._read(probe)
        there = self._read(name + probe)[0][1:] if name else alone
        if alone == there:
            return ""
        behind = self._read("\n" + probe)
        if [t for t, (_, end) in zip(*behind, strict=True) if end > 1] != there:
            raise UserError(
                f"the tokenizer ({type(self.tokenizer).__name__}) cannot read a part of a text as it reads the whole",
                fix="use another tokenizer, or take control-token strings out of the data",
            )
        return "\n"
