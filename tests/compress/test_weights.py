"""The tensors of files as others write them: tables that nobody loads, names without their beginning, copies."""

from __future__ import annotations

import pytest

from tunekit.compress.source import weights_of


def neox(tensors):
    import torch

    for at in range(2):
        front = f"gpt_neox.layers.{at}.attention"
        tensors[f"{front}.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        tensors[f"{front}.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{front}.rotary_emb.inv_freq"] = torch.ones(4)
    return tensors


def gpt2(tensors):
    import torch

    found = {name.removeprefix("transformer."): value for name, value in tensors.items() if "lm_head" not in name}
    return found | {f"h.{at}.attn.bias": torch.ones(1, 1, 8, 8) for at in range(2)}


def unprefixed(tensors):
    return {name.removeprefix("model."): value for name, value in tensors.items()}


def copied(tensors):
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


CASES = {
    "GPT-NeoX as on the Hub": ("gpt_neox", {}, neox, 6),
    "GPT-2 as on the Hub": ("gpt2", {}, gpt2, 2),
    "a file of the base model": ("llama", {"tie_word_embeddings": True}, unprefixed, 0),
    "a copy of the embedding as head": ("llama", {"tie_word_embeddings": True}, copied, 1),
    "as it is saved": ("llama", {}, dict, 0),
}


@pytest.fixture
def folder_of(tmp_path):
    def write(kind, options, change):
        import torch
        from safetensors.torch import load_file, save_file
        from transformers import AutoConfig, AutoModelForCausalLM

        sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"intermediate_size": 48, "max_position_embeddings": 64} if kind != "gpt2" else {"n_positions": 64}
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **options))
        folder = tmp_path / "model"
        model.save_pretrained(folder)
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, {"format": "pt"})
        return folder

    return write


@pytest.mark.parametrize("case", CASES)
def test_what_is_loaded_is_told_from_what_is_not(case, folder_of):
    import math

    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    kind, options, change, unused = CASES[case]
    folder = folder_of(kind, options, change)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]  # transformers itself finds a place for every weight
    found = weights_of(folder)
    assert sorted(weight.stored for weight in found) == sorted(load_file(folder / "model.safetensors"))
    used = [weight for weight in found if weight.role != "unused"]
    assert len(found) - len(used) == unused
    assert sum(math.prod(weight.shape) for weight in used) == sum(value.numel() for value in model.parameters())
    names = dict(model.named_parameters())
    assert {weight.name for weight in used} == set(names)
    assert all(weight.shape == tuple(names[weight.name].shape) for weight in used)
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    outer = {f"{name}.weight" for name in layers if model.get_submodule(name) is model.get_output_embeddings()}
    linear = {weight.name for weight in used if weight.role == "linear"}
    assert linear == {f"{name}.weight" for name in layers} - outer
