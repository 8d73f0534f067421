"""An engine around a model in memory: requests in batches by length, answers as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tunekit.core.progress import Screen
from tunekit.evaluate import abilities, decoding, likelihoods, sharing
from tunekit.evaluate.batches import batches, check_lengths
from tunekit.evaluate.contract import Generated, Likelihood, Prompt, Scored
from tunekit.evaluate.mode import evaluating, has_virtual_tokens, plain_model
from tunekit.evaluate.writer import Writer

if TYPE_CHECKING:
    import torch


def stop_tokens(model: Any, tokenizer: Any, extra: Sequence[int] = ()) -> frozenset[int]:
    """Ids that end an answer: the tokenizer's end token, the model's, and ``extra``."""
    found = set(extra)
    for ids in (tokenizer.eos_token_id, plain_model(model).generation_config.eos_token_id):
        found.update(ids if isinstance(ids, list | tuple) else () if ids is None else (ids,))
    return frozenset(found)


@dataclass(frozen=True)
class TransformersEngine(Writer):
    """Answers requests with a model on its device; the model's modes and the random states are as before afterwards.

    The model's own generation defaults (sampling, penalties) are not used, so that two models are asked alike; its end
    tokens are. Answers do not depend on ``batch_size`` but for rounding.

    Args:
        model: a causal language model of transformers or PEFT.
        tokenizer: the model's.
        batch_size: rows a batch, at most.
        batch_tokens: padded tokens a batch, at most; a longer row is a batch of its own.
        stop_ids: ids of tokens that end an answer beside the tokenizer's and the model's end tokens, such as the chat
            template's end of turn.
        share: compute what texts have in common at their beginning once, with the model's cache.
    """

    model: Any
    tokenizer: Any
    batch_size: int = 32
    batch_tokens: int = 4096
    stop_ids: tuple[int, ...] = ()
    share: bool = True

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        device: torch.device = self.model.device
        return device

    @property
    def positions(self) -> int | None:
        """How many positions the model knows; None for a kind of model that has no such bound."""
        known: int | None = getattr(plain_model(self.model).config.get_text_config(), "max_position_embeddings", None)
        if known is None or not has_virtual_tokens(self.model):
            return known
        return known - int(self.model.active_peft_config.num_virtual_tokens)

    @cached_property
    def splits(self) -> bool:
        """Whether rows can be taken out of the model's cache."""
        return abilities.takes_cache(self.model)

    @cached_property
    def border(self) -> int | None:
        """Texts longer than this are computed by themselves; mostly there is no such length."""
        return abilities.border_of(self.model)

    def likelihoods(
        self,
        requests: Sequence[Likelihood],
        screen: Screen,
        what: str,
        done: Callable[[int, Scored], None] = lambda index, answer: None,
    ) -> list[Scored]:
        """Scores texts. A likelihood that is nan stays nan.

        Raises:
            DataError: a text is longer than the model's positions.
        """
        check_lengths((len(request.ids) - 1 for request in requests), self.positions)
        found: dict[int, Scored] = {}
        alone, clusters = sharing.plan(requests, self.share and self.splits and self.border is None)
        with evaluating(self.model), screen.step(what, len(requests), "texts") as step:

            def tell(index: int, answer: Scored) -> None:
                found[index] = answer
                done(index, answer)
                step.advance()

            for chosen in self._together(alone, [len(request.ids) for request in requests]):
                answers = likelihoods.whole(self.model, [requests[index] for index in chosen], self.device)
                for index, answer in zip(chosen, answers, strict=True):
                    tell(index, answer)
            likelihoods.by_context(
                self.model, requests, clusters, self.device, rows=self.batch_size, tokens=self.batch_tokens, done=tell
            )
        return [found[index] for index in range(len(requests))]

    def generate(
        self,
        requests: Sequence[Prompt],
        screen: Screen,
        what: str,
        done: Callable[[int, Generated], None] = lambda index, answer: None,
    ) -> list[Generated]:
        """Answers prompts; an answer is shorter than asked for where the model's positions end.

        Raises:
            DataError: a prompt is empty, or fills the model's positions.
        """
        found: dict[int, Generated] = {}
        stops = stop_tokens(self.model, self.tokenizer, self.stop_ids)

        def tell(index: int, ids: list[int]) -> None:
            found[index] = self._answer(requests[index], ids, stops)
            done(index, found[index])

        self.tokens(requests, screen, what, tell)
        return [found[index] for index in range(len(requests))]

    def tokens(
        self,
        requests: Sequence[Prompt],
        screen: Screen,
        what: str,
        done: Callable[[int, list[int]], None] = lambda index, ids: None,
    ) -> list[list[int]]:
        """As `generate`, the answers as the model wrote them: token ids, with the end token where it came.

        Raises:
            DataError: a prompt is empty, or fills the model's positions.
        """
        check_lengths((len(request.ids) + 1 for request in requests), self.positions)
        asked = [self._with_room(request) for request in requests]
        short = sum(now.max_new_tokens < before.max_new_tokens for now, before in zip(asked, requests, strict=True))
        if short:
            screen.warn(f"{short} of {len(requests)} prompts leave room for shorter answers only")
        found: dict[int, list[int]] = {}
        stops = stop_tokens(self.model, self.tokenizer, self.stop_ids)
        with evaluating(self.model), screen.step(what, len(requests), "answers") as step:
            for batch in self._jobs(asked):

                def tell(place: int, ids: list[int], batch: Sequence[int] = batch) -> None:
                    found[batch[place]] = ids
                    done(batch[place], ids)
                    step.advance()

                prompts = [asked[index] for index in batch]
                if self.splits and not any(map(self._beyond, prompts)):
                    decoding.decode(
                        self.model,
                        self.tokenizer,
                        prompts,
                        stops,
                        self.device,
                        rows=self.batch_size,
                        tokens=self.batch_tokens,
                        done=tell,
                    )
                else:
                    for place, ids in enumerate(_generated(self.model, self.tokenizer, prompts, stops, self.device)):
                        tell(place, ids)
        return [found[index] for index in range(len(requests))]

    def _with_room(self, request: Prompt) -> Prompt:
        if self.positions is None:
            return request
        return replace(request, max_new_tokens=min(request.max_new_tokens, self.positions - len(request.ids)))

    def _together(self, indices: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
        """Texts in batches; those beyond the border by themselves."""
        beyond = [index for index in indices if self.border is not None and lengths[index] > self.border]
        yield from ([index] for index in beyond)
        near = [index for index in indices if index not in set(beyond)] if beyond else list(indices)
        for batch in batches([lengths[index] for index in near], rows=self.batch_size, tokens=self.batch_tokens):
            yield [near[place] for place in batch]

    def _beyond(self, request: Prompt) -> bool:
        return self.border is not None and len(request.ids) + request.max_new_tokens > self.border

    def _jobs(self, requests: Sequence[Prompt]) -> Iterator[list[int]]:
        """Prompts that are drawn alike; where rows cannot leave a batch, those of one length and room.

        Padding moves PEFT's virtual tokens away from the prompt, and some recurrent models read it; what `generate`
        draws depends on the batch.
        """
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for index, request in enumerate(requests):
            kind: tuple[Any, ...] = (request.temperature, request.top_p)
            if not self.splits or self._beyond(request):
                kind += (request.max_new_tokens, request.stops, len(request.ids))
                alone = request.temperature > 0 or self._beyond(request) or not abilities.takes_batches(self.model)
                kind += (index,) if alone else ()
            kinds.setdefault(kind, []).append(index)
        for (_, _, *single), rows in kinds.items():
            size = self.batch_size if single else len(rows)
            yield from (rows[start : start + size] for start in range(0, len(rows), size))

    def _answer(self, prompt: Prompt, ids: Sequence[int], stops: frozenset[int]) -> Generated:
        end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
        text = decoding.text_of(self.tokenizer, ids[:end])
        cut = min((text.index(stop) for stop in prompt.stops if stop in text), default=len(text))
        if cut == len(text) and prompt.stops:  # a stop may hold special tokens, which are no part of an answer
            kept = decoding.before_stop(self.tokenizer, ids[:end], prompt.stops)
            if kept < end:
                return Generated(decoding.text_of(self.tokenizer, ids[:kept]), kept, True)
        return Generated(text[:cut], end, end < len(ids) or cut < len(text))


def _generated(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], stops: frozenset[int], device: torch.device
) -> list[list[int]]:
    """As `decoding.decode`, by the model's own ``generate``: prompts that are asked for the same."""
    import torch

    settings = prompts[0]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops, default=0)
    ids, mask = decoding.left_padded([prompt.ids for prompt in prompts], pad)
    with _asked(plain_model(model), settings, stops, pad) as config:
        torch.manual_seed(settings.seed)
        found = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
            **({"stop_strings": list(settings.stops), "tokenizer": tokenizer} if settings.stops else {}),
        )
    answers: list[list[int]] = found[:, ids.shape[1] :].tolist()
    return answers


@contextmanager
def _asked(model: Any, settings: Prompt, stops: frozenset[int], pad: int) -> Iterator[Any]:
    """Puts our settings in the place of the model's own, which ``generate`` would mix in, and puts those back after."""
    from transformers import GenerationConfig

    drawn = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    config = GenerationConfig(
        use_cache=True,
        num_beams=1,
        max_new_tokens=settings.max_new_tokens,
        pad_token_id=pad,
        eos_token_id=sorted(stops) or None,
        **(drawn if settings.temperature > 0 else {"do_sample": False}),
    )
    own = model.generation_config
    model.generation_config = config
    try:
        yield config
    finally:
        model.generation_config = own
