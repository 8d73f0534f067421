"""The model families that are converted: what llama.cpp calls them, the keys it reads, and how their tensors lie.

Each is proven by a test that compares logits with those of transformers; what a family's graph in llama.cpp has built
in (the activation, where windows slide) is asked of the config, and refused where it is another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import Problem, UserError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

Keys = dict[str, Any]
ELSEWHERE = "convert it with llama.cpp's own convert_hf_to_gguf.py"


@dataclass(frozen=True)
class Family:
    """One of llama.cpp's architectures.

    Args:
        arch: its name in `gguf.MODEL_ARCH`.
        activation: what its graph computes between the products of a layer's second half.
        permuted: rows of the query and key products go in pairs, not in halves.
        shifted: norms are kept as the distance from 1, which llama.cpp does not add.
        windows: its graph knows layers that see a window of the text only.
        keys: further keys, from the config.
    """

    arch: str
    activation: str = "silu"
    permuted: bool = False
    shifted: bool = False
    windows: bool = False
    keys: Callable[[Any], Keys] = lambda config: {}


def _granite(config: Any) -> Keys:
    return {
        "attention.scale": float(config.attention_multiplier), "embedding_scale": float(config.embedding_multiplier),
        "residual_scale": float(config.residual_multiplier), "logit_scale": float(config.logits_scaling),
    }  # fmt: skip


def _gemma2(config: Any) -> Keys:
    caps = {"attn_logit_softcapping": config.attn_logit_softcapping,
            "final_logit_softcapping": config.final_logit_softcapping}  # fmt: skip
    return {key: float(value or 0.0) for key, value in caps.items()} | _window(config)


def _gemma3(config: Any) -> Keys:
    found = {"rope.freq_base_swa": float(_rope(config, "sliding_attention")["rope_theta"])} | _window(config)
    if config.final_logit_softcapping:
        found["final_logit_softcapping"] = float(config.final_logit_softcapping)
    return found


def _window(config: Any) -> Keys:
    return {"attention.sliding_window": int(config.sliding_window),
            "attention.sliding_window_pattern": [one == "sliding_attention" for one in config.layer_types]}  # fmt: skip


FAMILIES: Mapping[str, Family] = {
    "llama": Family("LLAMA", permuted=True),
    "mistral": Family("LLAMA", permuted=True),
    "qwen2": Family("QWEN2"),
    "qwen3": Family("QWEN3"),
    "smollm3": Family("SMOLLM3", permuted=True),
    "granite": Family("GRANITE", permuted=True, keys=_granite),
    "olmo2": Family("OLMO2"),
    "phi3": Family("PHI3"),
    "gemma": Family("GEMMA", "gelu_pytorch_tanh", shifted=True),
    "gemma2": Family("GEMMA2", "gelu_pytorch_tanh", shifted=True, windows=True, keys=_gemma2),
    "gemma3_text": Family("GEMMA3", "gelu_pytorch_tanh", shifted=True, windows=True, keys=_gemma3),
    "gpt2": Family("GPT2", "gelu_new"),
}
"""By ``model_type`` of config.json."""


def family_of(model_type: str) -> Family:
    """The family of a config's ``model_type``.

    Raises:
        UserError: it is none that is converted.
    """
    if model_type not in FAMILIES:
        raise UserError(f"models of type '{model_type}' are not converted to GGUF: {', '.join(FAMILIES)} are",
                        where="config.json", fix=ELSEWHERE)  # fmt: skip
    return FAMILIES[model_type]


def config_of(model: Mapping[str, Any]) -> PretrainedConfig:
    """transformers' config of the content of a config.json, with its defaults filled in.

    Raises:
        UserError: the family is not converted.
    """
    from transformers import AutoConfig

    family_of(str(model.get("model_type")))
    config: PretrainedConfig = AutoConfig.for_model(**model)
    return config


def problems(config: PretrainedConfig) -> list[Problem]:
    """What in a config has no place in llama.cpp's graph of the family."""
    family, found = family_of(config.model_type), []
    activation = _first(config, "hidden_activation", "hidden_act", "activation_function")
    if activation not in (family.activation, {"silu": "swish"}.get(family.activation)):
        found.append(f"its activation is '{activation}', llama.cpp computes '{family.activation}' in this family")
    rope = _rope(config)
    if rope.get("rope_type", "default") not in ("default", "linear", "llama3", "yarn"):
        found.append(f"its positions are scaled by '{rope['rope_type']}', which is not converted")
    if rope.get("rope_type") == "yarn" and any(
        rope.get(key) for key in ("mscale", "mscale_all_dim", "attention_factor")
    ):
        found.append("its positions are scaled by 'yarn' with a factor of its own, which is not converted")
    windows = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if windows and not family.windows and config.model_type not in ("mistral", "phi3"):
        found.append("some of its layers see a window of the text only, which llama.cpp lacks in this family")
    found += _odd(config)
    return [Problem(what, "config.json", ELSEWHERE) for what in found]


def _odd(config: Any) -> list[str]:
    """What a single family's graph has built in."""
    found, kind = [], config.model_type
    head = _head(config)
    if kind in ("gemma2", "gemma3_text") and config.query_pre_attn_scalar != head:
        found.append(f"query_pre_attn_scalar is {config.query_pre_attn_scalar}, llama.cpp takes {head}")
    if kind == "gemma3_text" and getattr(config, "use_bidirectional_attention", False):
        found.append("its attention looks ahead")
    if kind == "smollm3" and list(config.no_rope_layers) != [
        int((i + 1) % 4 != 0) for i in range(config.num_hidden_layers)
    ]:
        found.append("its layers without positions are not every fourth, as in llama.cpp")
    if kind == "gpt2" and (not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx
                           or _first(config, "n_inner") not in (None, 4 * config.n_embd)):  # fmt: skip
        found.append("its attention's scale or its layers' width is not GPT-2's")
    if kind in ("phi3", "olmo2", "qwen2") and head * config.num_attention_heads != config.hidden_size:
        found.append("its heads together are not as wide as the model")
    if kind in ("gemma", "gemma2") and not config.tie_word_embeddings:
        found.append("its head is not its embedding, as in llama.cpp")
    return found


def keys_of(config: PretrainedConfig) -> Keys:
    """What llama.cpp reads of a model's shape, by key without the architecture's name in front."""
    family, rope = family_of(config.model_type), _rope(config)
    heads = _first(config, "num_attention_heads")
    keys: Keys = {
        "context_length": _context(config),
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": _first(config, "intermediate_size") or 4 * config.hidden_size,
        "attention.head_count": heads,
        "attention.head_count_kv": _first(config, "num_key_value_heads") or heads,
        "vocab_size": config.vocab_size,
    }
    if config.model_type == "gpt2":
        return keys | {"attention.layer_norm_epsilon": float(config.layer_norm_epsilon)}
    head = _head(config)
    keys |= {
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": int(head * float(rope.get("partial_rotary_factor") or 1.0)),
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if config.model_type == "phi3":
        keys["rope.scaling.original_context_length"] = config.original_max_position_embeddings
    return keys | _scaling(config, rope) | family.keys(config)


def _scaling(config: Any, rope: Mapping[str, Any]) -> Keys:
    kind = rope.get("rope_type", "default")
    if kind not in ("linear", "yarn"):
        return {}
    found: Keys = {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        known = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        found |= {"rope.scaling.original_context_length": int(known),
                  "rope.scaling.yarn_beta_fast": float(rope.get("beta_fast") or 32),
                  "rope.scaling.yarn_beta_slow": float(rope.get("beta_slow") or 1)}  # fmt: skip
    return found


def rope_factors(config: PretrainedConfig) -> list[float] | None:
    """What each frequency is divided by under Llama 3's scaling (arXiv 2407.21783), (head / 2); None without it."""
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    head, factor, known = _head(config), float(rope["factor"]), float(rope["original_max_position_embeddings"])
    low, high, found = float(rope["low_freq_factor"]), float(rope["high_freq_factor"]), []
    for pair in range(0, head, 2):
        turns = known * float(rope["rope_theta"]) ** (-pair / head) / (2 * math.pi)  # within the text it was trained on
        mixed = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(1 / ((1 - mixed) / factor + mixed))
    return found


def _context(config: Any) -> int:
    """How far the graph in llama.cpp is the model's: windows that it does not know bound it."""
    window = _first(config, "sliding_window") if config.model_type in ("mistral", "phi3") else None
    return int(min(config.max_position_embeddings, window or config.max_position_embeddings))


def _rope(config: Any, layer: str = "full_attention") -> dict[str, Any]:
    """The parameters of rotary positions, of one kind of layer where kinds have their own."""
    found = dict(getattr(config, "rope_parameters", None) or {})
    return dict(found[layer]) if layer in found else found


def _head(config: Any) -> int:
    return int(_first(config, "head_dim") or config.hidden_size // config.num_attention_heads)


def _first(config: Any, *names: str) -> Any:
    """The first of a config's attributes that it has: families differ in what they call a thing."""
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def arrange(name: str, value: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    """A tensor as llama.cpp's graph takes it.

    Args:
        name: in transformers.
        value: as transformers has it.
        config: of the model.
    """
    family = family_of(config.model_type)
    if family.permuted and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else _first(config, "num_key_value_heads")
        halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
        return halves.transpose(1, 2).reshape(value.shape)  # (head, pair, half, ...): x_i and x_(i + d/2) together
    if family.shifted and name.endswith("norm.weight"):
        return value.float() + 1
    return value
