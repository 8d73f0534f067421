"""Generation in batches that get smaller: a row that has come to its end leaves, and the others go on without it.

Shapes: ``B`` rows still going on, ``T`` tokens of the longest prompt, ``V`` vocabulary.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunekit.evaluate.contract import Prompt
from tunekit.evaluate.logits import logits_at
from tunekit.evaluate.mode import has_virtual_tokens, plain_model

if TYPE_CHECKING:
    import torch

LEAVE = 0.125  # the batch is made smaller when this share of it has ended: it costs a copy of the cache
STOP_TAIL = 8  # tokens looked at for a stop text beside one for each of its characters


def takes_cache(model: Any) -> bool:
    """Whether a model's cache can be split by rows, and its tokens placed by their positions.

    Recurrent states cannot be padded on the left, and vectors that PEFT puts before the text move away from it.
    """
    inner = plain_model(model)
    layers = getattr(inner.config.get_text_config(), "layer_types", None) or ()
    accepted = inspect.signature(type(inner).forward).parameters
    return (
        {"past_key_values", "attention_mask", "position_ids", "use_cache"} <= set(accepted)
        and not has_virtual_tokens(model)
        and not getattr(inner, "_is_stateful", False)
        and not inner.config.is_encoder_decoder
        and not any("linear" in str(kind) for kind in layers)
        and bool(inner._supports_default_dynamic_cache())
    )


def decode(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], stop_ids: frozenset[int], device: torch.device
) -> list[list[int]]:
    """The new tokens of each prompt, its end token included where it came; they share temperature and top_p.

    Args:
        model: in evaluation mode; one that `takes_cache`.
        tokenizer: reads stop texts.
        prompts: B of them; each has its own number of new tokens and seed.
        stop_ids: ids that end an answer.
        device: the model's.
    """
    import torch
    from transformers import DynamicCache

    ids, mask = left_padded([prompt.ids for prompt in prompts], 0)
    width = ids.shape[1]
    cache = DynamicCache(config=plain_model(model).config)
    last = getattr(plain_model(model).config.get_text_config(), "max_position_embeddings", None)
    answers: list[list[int]] = [[] for _ in prompts]
    draws = [random.Random(f"{prompt.seed} {prompt.ids}") for prompt in prompts]
    alive = list(range(len(prompts)))
    mask = mask.to(device)
    position = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = logits_at(
        model,
        ids.to(device),
        torch.arange(len(prompts)),
        torch.full((len(prompts),), width - 1),
        past_key_values=cache,
        attention_mask=mask,
        position_ids=position,
        use_cache=True,
    )  # (B, V)
    position = position[:, -1:]
    ended: set[int] = set()
    while True:
        new = choose(logits, prompts[0], [draws[row] for row in alive])
        for place, (row, token) in enumerate(zip(alive, new.tolist(), strict=True)):
            if place not in ended:
                answers[row].append(token)
                full = len(answers[row]) == prompts[row].max_new_tokens
                if full or token in stop_ids or _stopped(tokenizer, answers[row], prompts[row].stops):
                    ended.add(place)
        if len(ended) == len(alive):
            return answers
        if len(ended) >= LEAVE * len(alive):
            kept = [place for place in range(len(alive)) if place not in ended]
            at = torch.tensor(kept, device=device)
            cache.batch_select_indices(at)
            alive, ended = [alive[place] for place in kept], set()
            new, mask, position = new[at], mask[at], position[at]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        # a row that has ended and not left yet may stand at the last position
        position = position + 1 if last is None else (position + 1).clamp(max=last - 1)
        logits = model(
            input_ids=new[:, None], past_key_values=cache, attention_mask=mask, position_ids=position, use_cache=True
        ).logits[:, -1]


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
