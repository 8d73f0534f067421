"""What a model's cache and positions allow: which texts may share a batch, and which a beginning."""

from __future__ import annotations

import inspect
from typing import Any

from tunekit.evaluate.mode import has_virtual_tokens, plain_model


def takes_cache(model: Any) -> bool:
    """Whether a model's cache can be split by rows, and its tokens placed by their positions.

    Recurrent states cannot be padded on the left, and vectors that PEFT puts before the text move away from it.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    inner = plain_model(model)
    plain_layers = {DynamicLayer, DynamicSlidingWindowLayer}
    accepted = inspect.signature(type(inner).forward).parameters
    return (
        {"past_key_values", "attention_mask", "position_ids", "use_cache"} <= set(accepted)
        and not has_virtual_tokens(model)
        and not getattr(inner, "_is_stateful", False)
        and not inner.config.is_encoder_decoder
        and bool(inner._supports_default_dynamic_cache())
        and {type(layer) for layer in DynamicCache(config=inner.config).layers} <= plain_layers
    )


def takes_batches(model: Any) -> bool:
    """Whether rows of one length may be generated together: the states of RWKV and its kin are not kept apart."""
    return bool(plain_model(model)._supports_default_dynamic_cache())


def has_windows(model: Any) -> bool:
    """Whether a layer of the model sees a window of the text only."""
    config = plain_model(model).config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return any(kind != "full_attention" for kind in kinds)
    local = "local" in (getattr(config, "attention_layers", None) or ())  # GPT-Neo's word
    return local or getattr(config, "sliding_window", None) is not None


def border_of(model: Any) -> int | None:
    """The length from which on a model places its tokens in another way, whole texts at a time; mostly there is none.

    Such texts must not share a batch, or a cache, with shorter ones.
    """
    config = plain_model(model).config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    if not any(part.get("rope_type", part.get("type")) in ("longrope", "dynamic") for part in kinds):
        return None
    known = [part.get("original_max_position_embeddings") for part in kinds]
    known += [getattr(config, "original_max_position_embeddings", None), config.max_position_embeddings]
    return int(next(filter(None, known)))
