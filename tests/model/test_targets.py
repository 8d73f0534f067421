"""What `adapter.targets` means in models whose modules have other names."""

from __future__ import annotations

import pytest

from tunekit.core.errors import UserError
from tunekit.model.targets import check_names, linear_names, resolve_targets

LLAMA_ATTENTION = ["k_proj", "o_proj", "q_proj", "v_proj"]
LLAMA_MLP = ["down_proj", "gate_proj", "up_proj"]
NAMES = {
    "llama": (LLAMA_ATTENTION, LLAMA_MLP),
    "qwen3": (LLAMA_ATTENTION, LLAMA_MLP),
    "gpt2": (["c_attn", "c_proj"], ["c_fc", "c_proj"]),
    "phi3": (["o_proj", "qkv_proj"], ["down_proj", "gate_up_proj"]),
}


def model_of(architecture):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 32, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    if architecture == "gpt2":
        sizes |= {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 16}
    else:
        sizes |= {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
        sizes |= {"intermediate_size": 24, "max_position_embeddings": 16}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes))


def short(names):
    return sorted({name.rsplit(".", 1)[-1] for name in names})


@pytest.mark.parametrize("architecture", NAMES)
def test_groups_are_found_by_structure_not_by_name(architecture):
    model = model_of(architecture)
    attention, mlp = NAMES[architecture]
    found = {word: resolve_targets(model, word) for word in ("attention", "mlp", "all-linear")}
    assert (short(found["attention"]), short(found["mlp"])) == (attention, mlp)
    assert sorted(found["attention"] + found["mlp"]) == found["all-linear"] == sorted(linear_names(model))
    assert not any("lm_head" in name for name in found["all-linear"])
    assert len(found["all-linear"]) == 2 * (len(attention) + len(mlp))  # two layers


def test_names_words_and_expressions():
    model = model_of("llama")
    assert len(resolve_targets(model, ["q_proj", "v_proj"])) == 4
    assert resolve_targets(model, ["layers.1.self_attn.q_proj"]) == ["model.layers.1.self_attn.q_proj"]
    assert resolve_targets(model, ["mlp", "q_proj"]) == sorted(
        resolve_targets(model, "mlp") + resolve_targets(model, ["q_proj"])
    )
    assert resolve_targets(model, r".*layers\.0.*[qk]_proj") == [
        "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.q_proj",
    ]  # fmt: skip
    assert resolve_targets(model, ["lm_head"]) == ["lm_head"]


@pytest.mark.parametrize(
    ("wanted", "what", "fix"),
    [
        (["q_proj", "qq_proj"], "no module of the model is called 'qq_proj'", "did you mean 'q_proj'?"),
        (["zebra"], "no module of the model is called 'zebra'", "known: "),
        ("q_proj.*", "no module's name fits the expression", "it must fit the whole name"),
    ],
)
def test_what_fits_nothing_is_refused_even_beside_what_fits(wanted, what, fix):
    with pytest.raises(UserError) as caught:
        resolve_targets(model_of("llama"), wanted)
    (problem,) = caught.value.problems
    assert what in problem.what and fix in problem.fix and problem.where == "adapter.targets"


def test_modules_to_train_are_looked_up_as_well():
    check_names(model_of("llama"), ["embed_tokens", "lm_head"], "adapter.train_modules")
    with pytest.raises(UserError, match="no module of the model is called 'lm_haed'"):
        check_names(model_of("llama"), ["lm_haed"], "adapter.train_modules")
