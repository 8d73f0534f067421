"""Which type each tensor has in a .gguf file: the rules of llama.cpp's quantizer (src/llama-quant.cpp), as arithmetic.

A k-quant is a mix: layers that suffer most from rounding get more bits, by name and by their place in the stack.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tunekit.compress.contract import Weight
from tunekit.compress.skipping import is_skipped

BLOCKS = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22),
    "Q5_1": (32, 24), "Q8_0": (32, 34), "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}  # fmt: skip
"""Of each type: values in a block, and its bytes, scales included."""
HELP = {
    "f32": "32-bit floats",
    "f16": "16-bit floats; refused where a weight is too large for them",
    "bf16": "bfloat16",
    "q8_0": "8 bits in blocks of 32, 8.5 with scales",
    "q5_1": "5 bits and an offset in blocks of 32, 6 with scales; head 8 bits",
    "q5_0": "5 bits in blocks of 32, 5.5 with scales; head 8 bits",
    "q4_1": "4 bits and an offset in blocks of 32, 5 with scales; head 8 bits",
    "q4_0": "4 bits in blocks of 32, 4.5 with scales; head 8 bits",
    "q6_k": "6 bits, 6.6 with scales",
    "q5_k_m": "5 bits, half of the values and of the layers' last products 6; head 6",
    "q5_k_s": "5 bits; head 6",
    "q4_k_m": "4 bits, half of the values and of the layers' last products 6; head 6",
    "q4_k_s": "4 bits, the first layers 5; head 6",
    "q3_k_l": "3 bits, attention's outputs and the layers' last products 5; head 6",
    "q3_k_m": "3 bits, attention's outputs and the layers' last products 4 or 5; head 6",
    "q3_k_s": "3 bits; head 6",
    "q2_k": "2 bits, attention's outputs and the layers' last products 3; head 6",
}
"""What can be asked for, with one line of help."""
FLOATS = ("f32", "f16", "bf16")
MIXES = {kind: kind[:4].upper() for kind in HELP if "_k" in kind}
"""The k-quants, made by llama.cpp itself, and the type that most of their weights have."""
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # rows of no 256s
SOURCE_BITS = {64: "F32", 32: "F32", 16: "F16"}
_SCORED = ("v_proj", "qkv_proj", "c_attn")
_CATEGORIES = {
    **dict.fromkeys(_SCORED, "value"),
    "o_proj": "output", "attn.c_proj": "output", "down_proj": "down", "mlp.c_proj": "down",
}  # fmt: skip


def is_kept(weight: Weight, skip: Sequence[str]) -> bool:
    """Whether a tensor is of a layer that is left as it is."""
    return weight.role == "linear" and is_skipped(weight.name, skip)


def type_of(kind: str, weight: Weight, skip: Sequence[str] = ()) -> str:
    """The type that a tensor has in the file, a key of `BLOCKS`.

    Args:
        kind: one of `HELP`.
        weight: a tensor that is not left out; of a k-quant with the model that it is in.
        skip: modules left as they are.
    """
    if len(weight.shape) < 2 or _is_table(weight) or weight.name.endswith("norm.weight"):
        return "F32"
    if kind in FLOATS:
        return kind.upper()
    columns = weight.shape[0] if weight.turned else weight.shape[-1]
    if is_kept(weight, skip):
        return SOURCE_BITS.get(weight.bits, "F16")
    head = weight.role == "head" or weight.tied
    if kind in MIXES:
        wanted = _mixed(kind, weight, head, columns)
        wanted = wanted if columns % BLOCKS[wanted][0] == 0 else FALLBACK.get(wanted, wanted)
    else:
        wanted = "Q8_0" if head else kind.upper()
    return wanted if columns % BLOCKS[wanted][0] == 0 else "F16"


def bits_of(name: str) -> float:
    """Bits of one value of a type, scales included."""
    values, size = BLOCKS[name]
    return 8 * size / values


def _is_table(weight: Weight) -> bool:
    """Of positions, as GPT-2 has: looked up, never multiplied."""
    return weight.name.endswith("wpe.weight")


def _mixed(kind: str, weight: Weight, head: bool, columns: int) -> str:
    main = MIXES[kind]
    if head:
        return "Q6_K" if columns % BLOCKS[main][0] == 0 else "Q8_0"
    found = re.search(r"\.(?:layers|h)\.(\d+)\.", f".{weight.name}")
    category = next((value for key, value in _CATEGORIES.items() if weight.name.endswith(f".{key}.weight")), None)
    if found is None or category is None:
        return main
    assert weight.model, f"{weight.name}: a mix asks for the model's number of layers"
    layers = int(weight.model.get("num_hidden_layers") or weight.model["n_layer"])
    return {"value": _values, "output": _outputs, "down": _downs}[category](kind, main, int(found[1]), layers, weight)


def _more(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and of those between every third."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _values(kind: str, main: str, layer: int, layers: int, weight: Weight) -> str:
    heads = weight.model.get("num_attention_heads") or weight.model["n_head"]
    sharing = heads // (weight.model.get("num_key_value_heads") or heads)
    found = main
    if kind == "q2_k":
        found = "Q4_K" if sharing >= 4 else "Q3_K"
    elif kind == "q3_k_m":
        found = "Q5_K" if layer < 2 else "Q4_K"
    elif kind == "q3_k_l" or (kind == "q4_k_s" and layer < 4):
        found = "Q5_K"
    elif kind in ("q4_k_m", "q5_k_m") and _more(layer, layers):
        found = "Q6_K"
    shared = weight.model.get("model_type") == "qwen2" or sharing > 1
    large = layers == 80 and weight.model.get("model_type") in ("llama", "mistral", "qwen2") and shared
    return "Q5_K" if large and found in ("Q3_K", "Q4_K") else found  # "70B": eight heads share these


def _outputs(kind: str, main: str, layer: int, layers: int, weight: Weight) -> str:
    return {"q2_k": "Q3_K", "q3_k_m": "Q4_K", "q3_k_l": "Q5_K"}.get(kind, main)


def _downs(kind: str, main: str, layer: int, layers: int, weight: Weight) -> str:
    if kind == "q3_k_m":
        return "Q5_K" if layer < layers // 16 else "Q4_K"
    if kind in ("q4_k_m", "q5_k_m") and _more(layer, layers):
        return "Q6_K"
    if kind == "q4_k_s" and layer < layers // 8:
        return "Q5_K"
    return {"q2_k": "Q3_K", "q3_k_l": "Q5_K"}.get(kind, main)
