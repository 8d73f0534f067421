"""Generation in batches that stay full: a row that has come to its end leaves, and the next prompt takes its place.

Shapes: ``B`` rows of a batch, ``T`` tokens that its cache holds, padding included, ``V`` vocabulary.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tunekit.evaluate.abilities import has_windows
from tunekit.evaluate.contract import Prompt
from tunekit.evaluate.logits import logits_at
from tunekit.evaluate.mode import plain_model
from tunekit.evaluate.slots import slotted

if TYPE_CHECKING:
    import torch

LEAVE = 0.125  # the batch is made smaller when this share of it has ended: it costs a copy of the cache
REFILL = 0.125  # while prompts wait, the places of rows that have ended are filled when this share of them is free
STOP_TAIL = 8  # tokens looked at for a stop text beside one for each of its characters


def decode(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    stop_ids: frozenset[int],
    device: torch.device,
    *,
    rows: int,
    tokens: int,
    done: Callable[[int, list[int]], None],
) -> None:
    """Answers prompts, ``rows`` at a time: where rows have ended, the next prompts take their places.

    Args:
        model: in evaluation mode; one that `takes_cache`.
        tokenizer: reads stop texts.
        prompts: which share temperature and top_p; each has its own number of new tokens and seed.
        stop_ids: ids that end an answer.
        device: the model's.
        rows: of a batch, at most.
        tokens: of prompts that are read at once, padding included; a longer prompt is read alone.
        done: is told each prompt's index and its new tokens, the end token included where it came.
    """
    waiting = deque(sorted(range(len(prompts)), key=lambda index: (-len(prompts[index].ids), index)))
    refills = not has_windows(model)  # the cache of a window has no places for padding
    answers = Answers(tokenizer, prompts, stop_ids, done)
    live: Live | None = None
    while waiting or live is not None:
        free = rows if live is None else rows - len(live.alive)
        if waiting and (live is None or (refills and free >= REFILL * rows)):
            widest = len(prompts[waiting[0]].ids)  # the longest of those that wait
            count = min(free, len(waiting), max(1, tokens // widest))
            taken = [waiting.popleft() for _ in range(count)]
            fresh = answers.taken(*_begun(model, prompts, taken, device))
            if live is None:
                live = fresh.with_room() if fresh is not None and refills else fresh
            elif fresh is not None:
                live.join(fresh.left())
        else:
            assert live is not None
            live = answers.taken(live, live.step(model), stay=refills and bool(waiting))


@dataclass(frozen=True)
class Answers:
    """The answers so far, each with its own generator."""

    tokenizer: Any
    prompts: Sequence[Prompt]
    stop_ids: frozenset[int]
    done: Callable[[int, list[int]], None]
    ids: dict[int, list[int]] = field(default_factory=dict)
    draws: dict[int, random.Random] = field(default_factory=dict)

    def taken(self, live: Live, logits: torch.Tensor, *, stay: bool = False) -> Live | None:
        """Takes the next token of every row from (B, V) logits; None when no row goes on.

        ``stay``: rows that have ended keep their places, for others to come.
        """
        settings = self.prompts[live.rows[0]]
        new = choose(logits, settings, [self._draws(index) for index in live.rows] if settings.temperature > 0 else ())
        ended = set(live.ended)
        for place, (index, token) in enumerate(zip(live.rows, new.tolist(), strict=True)):
            if place in live.ended:
                continue
            answer = self.ids.setdefault(index, [])
            answer.append(token)
            prompt = self.prompts[index]
            full = len(answer) == prompt.max_new_tokens
            if full or token in self.stop_ids or _stopped(self.tokenizer, answer, prompt.stops):
                ended.add(place)
                self.done(index, self.ids.pop(index))
        now = replace(live, new=new, ended=frozenset(ended))
        if not now.alive:
            return None
        return now.left() if not stay and len(ended) >= LEAVE * len(now.rows) else now

    def _draws(self, index: int) -> random.Random:
        if index not in self.draws:
            self.draws[index] = random.Random(f"{self.prompts[index].seed} {self.prompts[index].ids}")
        return self.draws[index]


@dataclass
class Live:
    """Rows in the making: which prompts, what they have read, and the token that each is to read next.

    Args:
        rows: B indices of prompts.
        ended: places of rows that go on no more, and are still computed.
        cache: of transformers.
        mask: (B, T) what is text in the cache.
        position: (B, 1) of the last token that was read.
        new: (B,) the next token.
        last: the model's last position, if it has one.
        roomy: the cache is one that others can join.
    """

    rows: tuple[int, ...]
    ended: frozenset[int]
    cache: Any
    mask: torch.Tensor
    position: torch.Tensor
    new: torch.Tensor
    last: int | None
    roomy: bool = False

    @property
    def alive(self) -> list[int]:
        """The prompts that go on."""
        return [index for place, index in enumerate(self.rows) if place not in self.ended]

    def left(self) -> Live:
        """Without the rows that have ended; they leave the cache too."""
        import torch

        if not self.ended:
            return self
        at = torch.tensor([place for place in range(len(self.rows)) if place not in self.ended], device=self.new.device)
        self.cut()
        self.cache.batch_select_indices(at)
        return replace(
            self, rows=tuple(self.alive), ended=frozenset(), mask=self.mask[at], position=self.position[at],
            new=self.new[at],
        )  # fmt: skip

    def with_room(self) -> Live:
        """The same with a cache that others can join."""
        layers = self.cache.layers
        layers[:] = [slotted(layer) if layer.is_initialized else layer for layer in layers]
        self.roomy = True
        return self

    def cut(self) -> None:
        """Leaves out the columns that are padding in every row that goes on."""
        if not self.roomy:
            return
        alive = [place for place in range(len(self.rows)) if place not in self.ended]
        width = int(self.position[alive].max()) + 1
        for layer in self._layers():
            layer.narrow(width)
        self.mask = self.mask[:, -width:]

    def join(self, other: Live) -> None:
        """Puts rows into the places of those that have ended, and below where these do not suffice."""
        import torch

        self.cut()
        width, more = self.mask.shape[1], self.mask.shape[1] - other.mask.shape[1]
        assert more >= 0, f"the longest prompts come first: {other.mask.shape[1]} tokens join {width}"
        free = sorted(self.ended)[: len(other.rows)]
        places, count = torch.tensor(free, dtype=torch.long, device=self.new.device), len(free)
        for layer, new in zip(self._layers(), filter(lambda one: one.is_initialized, other.cache.layers), strict=True):
            layer.overwrite(places, new.keys[:count], new.values[:count])
            if count < len(other.rows):
                layer.append(new.keys[count:], new.values[count:])
        rows, mask = list(self.rows), torch.nn.functional.pad(other.mask, (more, 0))
        for place, index in zip(free, other.rows, strict=False):
            rows[place] = index
        for mine, new in ((self.mask, mask), (self.position, other.position), (self.new, other.new)):
            mine[places] = new[:count]
        self.mask = torch.cat([self.mask, mask[count:]])
        self.position = torch.cat([self.position, other.position[count:]])
        self.new = torch.cat([self.new, other.new[count:]])
        self.rows, self.ended = (*rows, *other.rows[count:]), self.ended - set(free)

    def _layers(self) -> list[Any]:
        return [layer for layer in self.cache.layers if layer.is_initialized]

    def step(self, model: Any) -> torch.Tensor:
        """Reads the next token of every row: logits (B, V)."""
        import torch

        mask = torch.cat([self.mask, self.mask.new_ones(len(self.rows), 1)], dim=1)
        # a row that has ended and not left yet may stand at the last position
        position = self.position + 1 if self.last is None else (self.position + 1).clamp(max=self.last)
        logits: torch.Tensor = model(
            input_ids=self.new[:, None],
            past_key_values=self.cache,
            attention_mask=mask,
            position_ids=position,
            use_cache=True,
        ).logits[:, -1]
        self.mask, self.position = mask, position
        return logits


def _begun(
    model: Any, prompts: Sequence[Prompt], taken: Sequence[int], device: torch.device
) -> tuple[Live, torch.Tensor]:
    """Reads prompts: their rows, and the logits (B, V) after them."""
    import torch
    from transformers import DynamicCache

    config = plain_model(model).config
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    ids, mask = left_padded([prompts[index].ids for index in taken], 0)
    mask = mask.to(device)
    cache = DynamicCache(config=config)
    position = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = logits_at(
        model,
        ids.to(device),
        torch.arange(len(taken)),
        torch.full((len(taken),), ids.shape[1] - 1),
        past_key_values=cache,
        attention_mask=mask,
        position_ids=position,
        use_cache=True,
    )
    last = None if positions is None else positions - 1
    new = torch.zeros(len(taken), dtype=torch.long, device=device)
    return Live(tuple(taken), frozenset(), cache, mask, position[:, -1:], new, last), logits


def left_padded(texts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, T) with ``pad`` before the shorter texts, and the mask (B, T) of what is text."""
    import torch

    width = max(map(len, texts))
    ids = torch.full((len(texts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, width - len(text) :] = torch.tensor(text, dtype=torch.long)
        mask[row, width - len(text) :] = 1
    return ids, mask


def choose(logits: torch.Tensor, settings: Prompt, draws: Sequence[random.Random]) -> torch.Tensor:
    """The next token of each of B rows: (B, V) -> (B,).

    A row is drawn with its own generator, one number a token, so that it does not depend on the other rows.
    """
    import torch

    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    chances, order = torch.softmax(logits.float() / settings.temperature, dim=-1).sort(dim=-1, descending=True)
    total = chances.cumsum(dim=-1)
    kept = total - chances < settings.top_p  # the likeliest is always among them
    total = (chances * kept).cumsum(dim=-1)
    drawn = torch.tensor([draw.random() for draw in draws], device=logits.device)[:, None] * total[:, -1:]
    place = torch.searchsorted(total, drawn, right=True).clamp(max=logits.shape[1] - 1)
    # rounding may lead past the last token that is kept
    place = torch.minimum(place, kept.sum(dim=-1, keepdim=True) - 1)
    return order.gather(1, place)[:, 0]


def text_of(tokenizer: Any, ids: Sequence[int], *, special: bool = False) -> str:
    """The text of an answer, as it is in the tokens; ``special``: special tokens too."""
    text: str = tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)
    return text


def before_stop(tokenizer: Any, ids: Sequence[int], stops: Sequence[str]) -> int:
    """How many tokens stand before the one with which a stop text is complete; all, where there is none."""
    for count in range(1, len(ids) + 1):
        if _stopped(tokenizer, ids[:count], stops):
            return count - 1
    return len(ids)


def _stopped(tokenizer: Any, answer: Sequence[int], stops: Sequence[str]) -> bool:
    if not stops:
        return False
    text = text_of(tokenizer, answer[-(max(map(len, stops)) + STOP_TAIL) :], special=True)
    return any(stop in text for stop in stops)
