"""Attention within the documents of a flat row, registered with transformers' AttentionInterface as ``tunekit``.

On CUDA it is torch's variable-length flash attention; elsewhere one causal call for all documents of a length. A branch
sees the beginning of another document before its own tokens. There is never a mask of (N, N). Without `Segments`, in
generation for one, it is transformers' own ``sdpa``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tunekit.kernels.segments import Segments

NAME = "tunekit"
_REFUSED = ("s_aux", "position_bias", "cache")
"""Arguments that change attention and that are not computed here; a model that passes them runs padded."""
_VARLEN = tuple(map(int, torch.__version__.split(".")[:2]))
"""torch's variable-length attention: from 2.11 on with a window and a scale, from 2.12 on with grouped heads."""


class CannotAttend(ValueError):
    """This model's attention has something that is not computed here."""


def register() -> None:
    """Makes ``attn_implementation="tunekit"`` known to transformers; registering twice changes nothing."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def mask_of(segments: Segments) -> torch.Tensor:
    """What to pass as ``attention_mask`` with `Segments`, (1, 1, 1, N): True where there is a token.

    transformers takes four dimensions for a finished mask and makes no other; the router loss of experts counts by it.
    """
    size = sum(segments.lengths)
    mask = torch.ones((1, 1, 1, size), dtype=torch.bool, device=segments.starts.device)
    mask[..., size - segments.filler :] = False
    return mask


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Segments | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention of one layer.

    Args:
        module: the layer; ``is_causal`` false is refused.
        query: (B, H, T, D).
        key, value: (B, K, T, D); each of the K heads serves H / K heads of the query.
        attention_mask: of transformers, or `mask_of` with ``segments``.
        segments: the documents of the row; B is 1 then.
        dropout: probability.
        scaling: of the scores; default 1 / sqrt(D).
        sliding_window: a token sees itself and so many less one before it.
        softcap: scores become cap x tanh(scores / cap).

    Returns:
        (B, T, H, D), and None for the weights.

    Raises:
        CannotAttend: the layer wants something else.
    """
    if segments is None:
        if softcap is None:
            return sdpa_attention_forward(  # type: ignore[no-any-return]
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
            )
        return _with_softcap(query, key, value, attention_mask, scaling, softcap, dropout), None
    refused = [name for name in _REFUSED if others.get(name) is not None]
    if (
        attention_mask is None
        or attention_mask.shape != (1, 1, 1, query.shape[2])
        or attention_mask.dtype != torch.bool
    ):
        refused.append("a mask of its own")
    if refused or not getattr(module, "is_causal", True) or query.shape[0] != 1 or key.shape[2] != query.shape[2]:
        raise CannotAttend(", ".join(refused) or f"{type(module).__name__} is not causal self-attention")
    kind = query.device.type
    if kind != "cpu" and torch.is_autocast_enabled(kind):  # rotary embeddings of float32 weights make float32 of them
        query, key, value = (each.to(torch.get_autocast_dtype(kind)) for each in (query, key, value))
    if _flash(query, key, value, dropout, softcap):
        return _varlen(query, key, value, segments, scaling, sliding_window), None
    if kind != "cpu":
        return _by_length(query, key, value, segments, dropout, scaling, sliding_window, softcap), None
    with torch.autocast("cpu", enabled=False):  # torch's kernel for short documents is twice as fast in float32 there
        rows = _by_length(
            query.float(), key.float(), value.float(), segments, dropout, scaling, sliding_window, softcap
        )
    return rows.to(query.dtype), None


def _flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, softcap: float | None) -> bool:
    half = query.dtype in (torch.float16, torch.bfloat16)
    sizes = query.shape[-1] == key.shape[-1] == value.shape[-1] <= 256 and query.shape[-1] % 8 == 0
    return query.is_cuda and half and sizes and dropout == 0.0 and softcap is None and _VARLEN >= (2, 11)


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    repeats = query.shape[1] // key.shape[1]
    options: dict[str, Any] = {"enable_gqa": repeats > 1}
    if _VARLEN < (2, 12):
        options = {}
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    starts, longest = segments.starts, segments.longest
    key_starts, longest_keys = starts, longest
    if segments.key_starts is not None:
        key, value = (_repeated(each, segments) for each in (key, value))
        key_starts = segments.key_starts
        longest_keys = max(length + seen for length, seen in zip(segments.lengths, segments.seen, strict=True))
    left = -1 if window is None or window >= longest_keys else window - 1
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))  # (N, heads, D)
    attend: Any = varlen_attn  # the last query of a document lies over its last key, whatever their numbers
    options |= {"scale": scaling, "window_size": (left, 0)}
    return attend(q, k, v, starts, key_starts, longest, longest_keys, **options)[None]  # type: ignore[no-any-return]


def _beginnings(part: torch.Tensor, segments: Segments, most: int | None) -> list[torch.Tensor]:
    """What each branch sees of another document, (1, heads, tokens, D); of that the last ``most`` tokens.

    One split for all: its gradient is one tensor of the row's length, whatever the number of branches.
    """
    shared = dict(segments.prefixes)
    sizes: list[int] = []
    places: dict[int, int] = {}
    for document, length in enumerate(segments.lengths[: segments.plain]):
        seen = shared.get(document, 0)
        kept = seen if most is None else min(seen, most)
        places[document] = len(sizes) + 1
        sizes += [seen - kept, kept, length - seen]
    parts = torch.split(part, [*sizes, part.shape[2] - sum(sizes)], dim=2)
    return [parts[places[document]] for document, _ in segments.prefixes]


def _repeated(part: torch.Tensor, segments: Segments) -> torch.Tensor:
    """(1, heads, N, D) with what each branch sees before its own, for `Segments.key_starts`."""
    first, branches = segments.plain, len(segments.prefixes)
    sizes = [sum(segments.lengths[:first]), *segments.lengths[first:]]
    plain, *others = torch.split(part, sizes, dim=2)
    both = zip(_beginnings(part, segments, None), others, strict=False)
    return torch.cat([plain, *(each for pair in both for each in pair), *others[branches:]], dim=2)


def _by_length(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    dropout: float,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """One call for all documents of a length; the parts are views, split and joined once."""
    sizes = [count * length for count, length in segments.groups]
    parts = (torch.split(each, sizes, dim=2) for each in (query, key, value))
    most = None if window is None else window - 1
    before = [_beginnings(each, segments, most) if segments.prefixes else [] for each in (key, value)]
    out, document = [], 0
    for q, k, v, (count, length) in zip(*parts, segments.groups, strict=True):
        q, k, v = (_documents(each, count, length) for each in (q, k, v))  # (count, heads, length, D)
        if segments.seen[document]:
            branches = slice(document - segments.plain, document - segments.plain + count)
            k, v = (torch.cat([torch.cat(seen[branches]), own], 2) for seen, own in zip(before, (k, v), strict=True))
        document += count
        narrow = window is not None and window < k.shape[2]
        mask = None
        if narrow or softcap is not None or k.shape[2] > length:
            mask = _causal(length, k.shape[2], window if narrow else None, query.device)
        if softcap is not None:
            found = _with_softcap(q, k, v, mask, scaling, softcap, dropout)
        else:
            found = scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
            ).transpose(1, 2)
        out.append(found.reshape(1, count * length, *found.shape[2:]))
    return torch.cat(out, dim=1)


def _documents(part: torch.Tensor, count: int, length: int) -> torch.Tensor:
    """(1, heads, count x length, D) as (count, heads, length, D)."""
    _, heads, _, size = part.shape
    return part[0].reshape(heads, count, length, size).transpose(0, 1)


def _causal(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """(queries, keys), the last over the last: True where a query may look.

    As many queries as keys: the corner of a larger one that is kept.
    """
    if queries == keys:
        return _kept_mask(max(256, 1 << (keys - 1).bit_length()), window, device)[:keys, :keys]
    allowed = torch.ones((queries, keys), dtype=torch.bool, device=device).tril(keys - queries)
    return allowed if window is None else allowed.triu(keys - queries + 1 - window)


@lru_cache(maxsize=4)
def _kept_mask(size: int, window: int | None, device: torch.device) -> torch.Tensor:
    allowed = torch.ones((size, size), dtype=torch.bool, device=device).tril()
    return allowed if window is None else allowed.triu(1 - window)


def _with_softcap(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    cap: float,
    dropout: float,
) -> torch.Tensor:
    """Attention as it is defined, for what no fused kernel of torch computes; (B, T, H, D)."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = cap * torch.tanh(scores / cap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        mask = mask.tril(scores.shape[-1] - scores.shape[-2])
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = nn.functional.dropout(scores.softmax(-1, dtype=torch.float32).to(value.dtype), dropout)
    return (weights @ value).transpose(1, 2)
