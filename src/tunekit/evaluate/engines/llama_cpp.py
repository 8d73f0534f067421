"""A .gguf file in llama.cpp, in this process, on the CPU."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from tunekit.core.errors import MachineError, UserError
from tunekit.core.files import sha256_file
from tunekit.core.progress import Screen
from tunekit.evaluate import decoding, gguf_file
from tunekit.evaluate.batches import check_lengths
from tunekit.evaluate.contract import Generated, Likelihood, Prompt, Scored
from tunekit.evaluate.gguf_file import Opened
from tunekit.evaluate.gguf_words import FileTokenizer, check_same
from tunekit.evaluate.prompting import Prompter
from tunekit.evaluate.writer import Writer

if TYPE_CHECKING:
    import numpy as np

_AT_ONCE = 512
"""Tokens read at a time, as many as llama.cpp takes together: an answer must not depend on what was read before it."""


class Config(BaseModel):
    """Options of the engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokenizer: str | None = Field(
        None, description="local folder or Hub id that prompts are written with; default: the baseline's"
    )
    max_length: int | None = Field(None, ge=2, description="tokens of prompt and answer together; default the model's")
    threads: int | None = Field(None, ge=1, description="of the forward pass; default: one a core")


@contextmanager
def open(config: Config, name: str, screen: Screen, tokenizer: Any = None) -> Iterator[LlamaCppEngine]:
    """The engine with the file loaded; its memory is given back at the end.

    Args:
        config: its options.
        name: a .gguf file, or the folder of one.
        screen: where progress goes.
        tokenizer: of transformers, that prompts are written with; None: the file's own vocabulary.

    Raises:
        UserError: there is no such file, or the tokenizer is another model's.
        MachineError: llama-cpp-python is not installed, or llama.cpp cannot load the file.
    """
    path = _file(name)
    with screen.step(f"loading {path.name}"):
        opened = Opened(path, threads=config.threads or len(os.sched_getaffinity(0)))
    with opened:
        if tokenizer is not None:
            check_same(opened, tokenizer)
        yield LlamaCppEngine(opened, tokenizer, config.max_length)


def around(opened: Opened, tokenizer: Any) -> LlamaCppEngine:
    """The engine of a file that was loaded."""
    return LlamaCppEngine(opened, tokenizer)


def identity(config: Config, name: str) -> list[Any]:
    """What tells this model's kept answers from others': the bytes of its files, and what they are read with."""
    files = [sha256_file(path) for path in gguf_file.parts(_file(name))]
    options = config.model_dump(mode="json", exclude={"tokenizer"})  # which the caller adds by its content
    return [files, options, version("llama-cpp-python")]


def _file(name: str) -> Path:
    if find_spec("llama_cpp") is None:
        what = "the engine llama_cpp needs the package 'llama-cpp-python', which is not installed"
        raise MachineError(what, where="engine", fix="pip install 'tunekit[gguf]'")
    path = gguf_file.find(Path(name).expanduser())
    if path is None:
        fix = "name a .gguf file, or the folder of one; other models: engine: {kind: transformers}"
        raise UserError(f"'{name}' is no .gguf file, which is what the engine llama_cpp reads", where="engine", fix=fix)
    return path


class LlamaCppEngine(Writer):
    """An `Engine` around a loaded .gguf file: one text at a time.

    Args:
        opened: the file.
        tokenizer: of transformers, or None for the file's own vocabulary.
        max_length: tokens of a text, at most; None for as many as the model was trained to read.
    """

    def __init__(self, opened: Opened, tokenizer: Any = None, max_length: int | None = None) -> None:
        self._opened, self._length = opened, max_length
        self._tokenizer = tokenizer if tokenizer is not None else FileTokenizer(opened)
        self._stops = frozenset(opened.stops())
        self._read: tuple[int, ...] = ()  # what the cache holds

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that it was given, or the file's own vocabulary."""
        return self._tokenizer

    @property
    def positions(self) -> int | None:
        """How many tokens the model reads and writes together."""
        return min(self._length, self._opened.positions) if self._length else self._opened.positions

    def likelihoods(
        self,
        requests: Sequence[Likelihood],
        screen: Screen,
        what: str,
        done: Callable[[int, Scored], None] = lambda index, answer: None,
    ) -> list[Scored]:
        """Scores texts; a long beginning that a text has in common with the one before it is read once.

        Raises:
            DataError: a text is longer than the model's positions.
        """
        check_lengths((len(request.ids) - 1 for request in requests), self.positions)
        room, found = max((len(request.ids) for request in requests), default=0), list[Scored]()
        with screen.step(what, len(requests), "texts") as step:
            for index, request in enumerate(requests):
                found.append(self._scored(request, room))
                done(index, found[-1])
                step.advance()
        return found

    def generate(
        self,
        requests: Sequence[Prompt],
        screen: Screen,
        what: str,
        done: Callable[[int, Generated], None] = lambda index, answer: None,
    ) -> list[Generated]:
        """Answers prompts; an answer is shorter than asked for where the model's positions end.

        Raises:
            DataError: a prompt fills the model's positions.
        """
        prompts = [self._ids(request) for request in requests]
        check_lengths((len(ids) + 1 for ids in prompts), self.positions)
        most = [self._most(request, ids) for request, ids in zip(requests, prompts, strict=True)]
        short = sum(count < request.max_new_tokens for count, request in zip(most, requests, strict=True))
        if short:
            screen.warn(f"{short} of {len(requests)} prompts leave room for shorter answers only")
        room = max((len(ids) + count for ids, count in zip(prompts, most, strict=True)), default=0)
        found = list[Generated]()
        with screen.step(what, len(requests), "answers") as step:
            for index, request in enumerate(requests):
                answer = self._tokens(request, prompts[index], most[index], room)
                found.append(self._generated(request, answer))
                done(index, found[-1])
                step.advance()
        return found

    def _scored(self, request: Likelihood, room: int) -> Scored:
        import numpy as np

        places = [place for place, scored in enumerate(request.scored) if scored]
        first, last = places[0], places[-1]
        start, value, greedy = self._shared(request.ids[: first - 1], room), 0.0, True
        for begin in range(start, last, _AT_ONCE):
            ids = request.ids[begin : min(begin + _AT_ONCE, last)]
            wanted = [place for place in places if begin < place <= begin + len(ids)]
            logits = self._opened.feed(ids, [place - 1 - begin for place in wanted], room=room, start=begin)
            for row, place in zip(logits.astype(np.float64), wanted, strict=True):
                own, peak = row[request.ids[place]], row.max()
                value += float(own - peak - np.log(np.exp(row - peak).sum()))
                greedy = greedy and bool(own >= peak)
        self._read = request.ids[:last]
        return Scored(value, len(places), greedy)

    def _shared(self, ids: Sequence[int], room: int) -> int:
        """How many of a text's first ids are in the cache, in whole parts; what stood after them is gone from it."""
        pairs = zip(ids, self._read, strict=False)
        same = next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(ids), len(self._read)))
        return self._opened.keep(same - same % _AT_ONCE, room=room)

    def _ids(self, request: Prompt) -> tuple[int, ...]:
        if request.ids:
            return request.ids
        messages = [{"role": role, "content": content} for role, content in request.messages]
        return Prompter(self._tokenizer, chat=True).ids_of(messages)

    def _most(self, request: Prompt, ids: Sequence[int]) -> int:
        return min(request.max_new_tokens, (self.positions or request.max_new_tokens) - len(ids))

    def _tokens(self, request: Prompt, ids: Sequence[int], most: int, room: int) -> list[int]:
        """An answer's ids, the end token included where it came."""
        start, self._read = self._shared(ids[:-1], room), tuple(ids)
        for begin in range(start, len(ids), _AT_ONCE):
            part = ids[begin : begin + _AT_ONCE]
            columns = [len(part) - 1] if begin + len(part) == len(ids) else []
            logits = self._opened.feed(part, columns, room=room, start=begin)
        draws, found = random.Random(f"{request.seed} {tuple(ids)}"), list[int]()
        while True:
            found.append(_chosen(logits, request, draws))
            if len(found) == most or found[-1] in self._stops or self._complete(request.stops, found):
                return found
            logits = self._opened.feed(found[-1:], (0,), room=room, start=len(ids) + len(found) - 1)

    def _complete(self, stops: Sequence[str], answer: Sequence[int]) -> bool:
        """Whether the last token made a stop text whole."""
        if not stops:
            return False
        text = decoding.text_of(self._tokenizer, answer[-(max(map(len, stops)) + decoding.STOP_TAIL) :], special=True)
        return any(stop in text for stop in stops)

    def _generated(self, request: Prompt, ids: Sequence[int]) -> Generated:
        whole = [token for token in ids if token not in self._stops]  # a stop is the last one, where there is one
        text = decoding.text_of(self._tokenizer, whole)
        cuts = [text.index(stop) for stop in request.stops if stop in text]
        if cuts:
            return Generated(text[: min(cuts)], len(whole), True)
        kept = decoding.before_stop(self._tokenizer, whole, request.stops)  # one that holds special tokens
        if kept < len(whole):
            return Generated(decoding.text_of(self._tokenizer, whole[:kept]), kept, True)
        return Generated(text, len(whole), len(whole) < len(ids))


def _chosen(logits: np.ndarray, request: Prompt, draws: random.Random) -> int:
    """The next token from (1, V) logits: the likeliest, or drawn as `decoding` draws."""
    if request.temperature == 0:
        return int(logits[0].argmax())
    import torch

    return int(decoding.choose(torch.from_numpy(logits), request, [draws])[0])
