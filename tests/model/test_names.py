"""Model names: what each form means, and what is said of one that means nothing."""

from __future__ import annotations

import json

import pytest

from tunekit.core.errors import UserError
from tunekit.model.names import TINY, resolve_name
from tunekit.model.tokenizer import embedding_rows, load_config, load_tokenizer, tokenizer_hash
from tunekit.recipe.schema import ModelBlock


def test_builtin_tiny_is_a_folder_of_the_package():
    name = resolve_name("builtin:tiny")
    assert (name.kind, name.location, name.random) == ("builtin", str(TINY), False)
    assert resolve_name("builtin:tiny?init=random").random


def test_builtin_random_keeps_its_shape():
    name = resolve_name("builtin:random?layers=3&hidden=96&arch=qwen3")
    assert name.random and name.shape == {"layers": "3", "hidden": "96", "arch": "qwen3"}


def test_hub_ids_and_folders(tmp_path):
    assert resolve_name("Qwen/Qwen3-0.6B").kind == "hub"
    assert resolve_name("gpt2").kind == "hub"
    (tmp_path / "config.json").write_text("{}")
    assert resolve_name(str(tmp_path)).kind == "local"


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("builtin:tiney", "no builtin model 'tiney'", "did you mean 'tiny'?"),
        ("builtin:random?layer=2", "no option 'layer'", "did you mean 'layers'?"),
        ("builtin:random?layers=0", "whole number >= 1", ""),
        ("builtin:random?layers=two", "whole number >= 1", ""),
        ("builtin:random?arch=lama", "unknown architecture 'lama'", "did you mean 'llama'?"),
        ("builtin:tiny?init=fresh", "'init' must be trained or random", "fresh"),
        ("builtin:tiny?random", "not of the form key=value", ""),
        ("./nowhere", "there is no model folder", "org/name"),
        ("a/b/c", "there is no model folder", "org/name"),
        ("has space/x", "there is no model folder", "org/name"),
    ],
)
def test_bad_names(text, what, fix):
    with pytest.raises(UserError) as caught:
        resolve_name(text)
    assert what in caught.value.problems[0].what
    assert fix in caught.value.problems[0].fix


def test_a_folder_without_a_model_is_refused_and_a_near_one_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    with pytest.raises(UserError, match="holds no model"):
        resolve_name("my-model")
    with pytest.raises(UserError) as caught:
        resolve_name("./my-modle")
    assert "my-model" in caught.value.fix


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "gpt2"])
def test_random_configs_have_the_tokenizer_s_vocabulary(arch):
    block = ModelBlock(name=f"builtin:random?arch={arch}&layers=1&hidden=64")
    config, tokenizer = load_config(block), load_tokenizer(block)
    assert config.model_type == arch
    assert embedding_rows(config) == len(tokenizer)
    assert config.get_text_config().num_hidden_layers == 1


def test_pickled_weights_are_refused(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    from tunekit.model.names import resolve_name as resolve
    from tunekit.model.tokenizer import hub_errors

    config = load_config(ModelBlock(name="builtin:random?layers=1&hidden=32"))
    model = AutoModelForCausalLM.from_config(config)
    config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read"), hub_errors(resolve(str(tmp_path))):
        AutoModelForCausalLM.from_pretrained(tmp_path, use_safetensors=True)


def test_remote_code_is_never_run(tmp_path):
    canary = tmp_path / "ran"
    (tmp_path / "modeling_evil.py").write_text(f"open({str(canary)!r}, 'w').write('x')\n")
    auto = {"AutoConfig": "modeling_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.Evil"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    with pytest.raises(UserError) as caught:
        load_config(ModelBlock(name=str(tmp_path)))
    assert "remote code is never run" in caught.value.fix
    assert not canary.exists()


def test_tokenizer_hash_changes_with_the_tokenizer():
    tokenizer = load_tokenizer(ModelBlock(name="builtin:tiny"))
    before = tokenizer_hash(tokenizer)
    assert before == tokenizer_hash(load_tokenizer(ModelBlock(name="builtin:tiny")))
    tokenizer.add_tokens(["brandnew"])
    assert tokenizer_hash(tokenizer) != before


def test_a_hub_id_that_begins_as_a_folder_here_does_names_its_neighbours(tmp_path, monkeypatch):
    """`runs/nam` may be meant as a folder, and is a possible Hub id."""
    from tunekit.core.errors import MachineError
    from tunekit.model.tokenizer import hub_errors

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "name").mkdir(parents=True)
    for text, fix in (("runs/nam", "did you mean 'runs/name'?"), ("org/nam", "check the id, the network")):
        with pytest.raises(MachineError) as refused, hub_errors(resolve_name(text)):
            raise OSError("no connection")
        assert fix in refused.value.problems[0].fix
