"""What a .gguf file's tensors weigh, which cuts of text have a name, and which models are refused: arithmetic alone."""

from __future__ import annotations

import json
import math

import pytest

from tunekit.compress.backends import gguf as backend
from tunekit.compress.contract import Weight
from tunekit.compress.ggml import families, kinds, splits
from tunekit.core.errors import UserError

# bits per weight of Llama-3.1-8B, as the table in llama.cpp's tools/quantize/README.md has them
PUBLISHED = {
    "q2_k": 3.1593, "q3_k_s": 3.6429, "q3_k_m": 3.9960, "q3_k_l": 4.2979, "q4_k_s": 4.6672, "q4_k_m": 4.8944,
    "q5_k_s": 5.5704, "q5_k_m": 5.7036, "q6_k": 6.5633, "q8_0": 8.5008, "f16": 16.0005,
}  # fmt: skip


def llama(hidden=4096, wide=14336, layers=32, heads=32, shared=8, words=128256, tied=False):
    """The tensors of a Llama."""
    model = {"model_type": "llama", "num_hidden_layers": layers, "num_attention_heads": heads,
             "num_key_value_heads": shared, "tie_word_embeddings": tied}  # fmt: skip
    narrow = hidden // heads * shared
    shapes = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (narrow, hidden),
              "self_attn.v_proj": (narrow, hidden), "self_attn.o_proj": (hidden, hidden),
              "mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden),
              "mlp.down_proj": (hidden, wide)}  # fmt: skip
    found = [Weight("model.embed_tokens.weight", (words, hidden), 16, "embedding", tied=tied, model=model)]
    found += [] if tied else [Weight("lm_head.weight", (words, hidden), 16, "head", model=model)]
    found.append(Weight("model.norm.weight", (hidden,), 16, "other", model=model))
    for layer in range(layers):
        front = f"model.layers.{layer}."
        found += [Weight(f"{front}{name}.weight", shape, 16, "linear", model=model) for name, shape in shapes.items()]
        found += [Weight(f"{front}{name}.weight", (hidden,), 16, "other", model=model)
                  for name in ("input_layernorm", "post_attention_layernorm")]  # fmt: skip
    return found


@pytest.mark.parametrize("kind", PUBLISHED)
def test_bits_are_those_that_llama_cpp_publishes(kind):
    weights = llama()
    whole = sum(math.prod(weight.shape) * backend.bits(kind, backend.Config(), weight) for weight in weights)
    assert whole / sum(math.prod(weight.shape) for weight in weights) == pytest.approx(PUBLISHED[kind], abs=5e-5)


def test_layers_of_a_mix_by_hand():
    """Of 32 layers the first and last four, and of the 24 between every third, beginning with the third."""
    weights = {weight.name: weight for weight in llama()}
    down = [weights[f"model.layers.{layer}.mlp.down_proj.weight"] for layer in range(32)]
    more = [layer for layer in range(32) if kinds.type_of("q4_k_m", down[layer]) == "Q6_K"]
    assert more == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


def test_rows_that_fit_no_block_fall_back():
    narrow = {weight.name.rpartition("layers.0.")[2]: weight for weight in llama(192, 512, 2, 6, 6, 64, tied=True)}
    assert kinds.type_of("q4_k_m", narrow["self_attn.q_proj.weight"]) == "Q5_0"  # 192 columns: 6 blocks of 32
    assert kinds.type_of("q3_k_s", narrow["mlp.up_proj.weight"]) == "Q4_0"
    assert kinds.type_of("q4_k_s", narrow["mlp.down_proj.weight"]) == "Q4_K"  # 512 columns
    assert kinds.type_of("q6_k", narrow["model.embed_tokens.weight"]) == "Q8_0"
    odd = Weight("model.layers.0.mlp.up_proj.weight", (64, 40), 16, "linear", model=narrow["model.norm.weight"].model)
    assert [kinds.type_of(kind, odd) for kind in ("q8_0", "q4_k_m", "bf16")] == ["F16", "F16", "BF16"]
    assert kinds.type_of("q4_0", narrow["model.embed_tokens.weight"]) == "Q8_0"  # it is the head as well
    assert kinds.type_of("q4_0", narrow["input_layernorm.weight"]) == "F32"


def test_layers_left_as_they_are_weigh_what_they_did():
    config = backend.Config(skip=("layers.0.mlp", "v_proj"))
    bits = {weight.name: backend.bits("q4_k_m", config, weight) for weight in llama(layers=2)}
    assert bits["model.layers.0.mlp.up_proj.weight"] == bits["model.layers.1.self_attn.v_proj.weight"] == 16
    assert bits["model.layers.1.mlp.up_proj.weight"] == 4.5


def cut_of(*parts, ignore=False):
    steps = [part if isinstance(part, dict) else {"type": "Split", "pattern": {"Regex": part}, "behavior": "Isolated",
                                                  "invert": False} for part in parts]  # fmt: skip
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "model": {"ignore_merges": ignore}}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")  # fmt: skip


def test_cuts_of_text_by_name():
    words = {**BYTES, "use_regex": True}
    assert splits.name_of({"pre_tokenizer": words, "model": {}}) == "gpt-2"
    assert splits.name_of(cut_of({"type": "Digits", "individual_digits": True}, words)) == "smollm"
    assert splits.name_of(cut_of(LLAMA3, BYTES, ignore=True)) == "llama-bpe"
    assert splits.name_of(cut_of(LLAMA3, BYTES)) == "smaug-bpe"  # the same cut, but merges count
    assert splits.name_of(cut_of(LLAMA3.replace("{1,3}", ""), BYTES)) == "qwen2"
    assert splits.name_of(cut_of(r"\p{Han}", {"type": "Digits", "individual_digits": True}, words)) == "smollm"


@pytest.mark.parametrize(
    "cut",
    [
        cut_of(LLAMA3.replace("{1,3}", "{1,2}"), BYTES),
        cut_of(LLAMA3.replace("{1,3}", ""), BYTES, ignore=True),
        cut_of({"type": "Digits", "individual_digits": False}, {**BYTES, "use_regex": True}),
        {"pre_tokenizer": {**BYTES, "use_regex": True, "add_prefix_space": True}, "model": {}},
        {"pre_tokenizer": None, "model": {}},
    ],
)
def test_a_cut_without_a_name_is_refused_with_what_it_is(cut):
    with pytest.raises(UserError, match=r"llama\.cpp has no name for how the tokenizer cuts text: ") as raised:
        splits.name_of(cut)
    assert "quantize to a format that transformers reads" in raised.value.fix


def small(**more):
    return {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2,
            "num_hidden_layers": 2, "intermediate_size": 64} | more  # fmt: skip


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "attention_factor": 2.0}
REFUSED = {
    "models of type 'mamba' are not converted": small(model_type="mamba"),
    "its activation is 'relu'": small(hidden_act="relu"),
    "scaled by 'dynamic'": small(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
    "a factor of its own": small(rope_parameters=YARN),
    "a window of the text only": small(model_type="qwen2", use_sliding_window=True, max_window_layers=0),
    "query_pre_attn_scalar is 7": small(model_type="gemma2", query_pre_attn_scalar=7, head_dim=16),
    "its head is not its embedding": small(model_type="gemma", tie_word_embeddings=False),
    "not every fourth": small(model_type="smollm3", no_rope_layers=[0, 0]),
    "not as wide as the model": small(model_type="phi3", head_dim=32, pad_token_id=0),
}


@pytest.mark.parametrize("what", REFUSED)
def test_models_that_llama_cpp_would_compute_otherwise_are_refused(what):
    found = backend.problems("f16", backend.Config(), REFUSED[what], [])
    assert [problem for problem in found if what in problem.what], found
    assert all(problem.fix == families.ELSEWHERE for problem in found)


def test_a_name_to_skip_that_no_layer_has():
    weights = llama(layers=1)
    assert backend.problems("q8_0", backend.Config(skip=("up_proj",)), small(), weights) == []
    (found,) = backend.problems("q8_0", backend.Config(skip=("up_pro",)), small(), weights)
    assert found.where == "skip" and "up_pro" in found.what and "up_proj" in found.fix


def test_frequencies_of_llama_3_as_transformers_scales_them():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}  # fmt: skip
    config = families.config_of(small(head_dim=32, rope_parameters=rope))
    factors = families.rope_factors(config)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = [5e5 ** (-pair / 32) for pair in range(0, 32, 2)]
    assert [a / b for a, b in zip(plain, factors)] == pytest.approx(scaled.tolist(), rel=1e-6)
    assert families.rope_factors(families.config_of(small())) is None
    assert json.dumps(families.keys_of(config))  # plain values only
