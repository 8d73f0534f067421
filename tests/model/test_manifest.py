"""The manifest of a finished model: each thing that may have changed since is refused by name."""

from __future__ import annotations

import json
import shutil

import pytest

from tunekit.core.errors import MachineError, UserError
from tunekit.model.artefact import MANIFEST, base_facts, base_fingerprint, licence_fields, verify
from tunekit.model.restore import find, restore
from tunekit.recipe.schema import ModelBlock


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, and the folder of a LoRA adapter on it, with its logits."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

    from tunekit.model.names import TINY
    from tunekit.model.save import save_model

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("made")
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    set_seed(1)
    config = AutoConfig.for_model("gpt2", n_layer=1, n_embd=32, n_head=2, n_positions=64, vocab_size=len(tokenizer))
    AutoModelForCausalLM.from_config(config).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    (root / "base" / "README.md").write_text("---\nlicense: 'mit'\nlicense_link: here\n---\n", encoding="utf-8")
    facts = {"base": base_facts(ModelBlock(name=str(root / "base")), seed=0, dtype="float32")}
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(root / "base"),
        LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], init_lora_weights=False),
    )
    save_model(model, tokenizer, root / "model", 5, facts)
    with torch.no_grad():
        logits = model.eval()(torch.arange(8)[None]).logits
    return root, tokenizer, logits


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the adapter's folder, to be damaged."""
    shutil.copytree(made[0] / "model", tmp_path / "model")
    return tmp_path / "model"


def test_what_is_whole_is_loaded_with_the_same_logits(made):
    import torch

    root, tokenizer, logits = made
    restored = restore(root / "model", dtype="float32")
    with torch.no_grad():
        assert torch.equal(restored.model(torch.arange(8)[None]).logits, logits)
    assert restored.base_name == str(root / "base")
    manifest = restored.manifest
    assert manifest["tokens"] == len(tokenizer) == len(restored.tokenizer)
    assert manifest["base"]["licence"] == {"license": "mit", "license_link": "here"}
    assert set(manifest["files"]) == {path.name for path in (root / "model").iterdir()} - {MANIFEST}


def test_one_flipped_bit_of_a_tensor(copy):
    path = copy / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(MachineError, match=r"adapter_model.safetensors: the file is not as it was saved"):
        restore(copy)


def test_another_template(copy):
    (copy / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    with pytest.raises(MachineError, match=r"chat_template.jinja: the chat template is not"):
        restore(copy)


def test_a_template_beside_the_tokenizers(made, tmp_path):
    """transformers would take the file's."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunekit.model.save import save_model

    tokenizer = AutoTokenizer.from_pretrained(made[0] / "base")
    tokenizer.chat_template = None
    model = AutoModelForCausalLM.from_pretrained(made[0] / "base")
    save_model(model, tokenizer, tmp_path / "model", 5, {"base": {}})
    assert verify(tmp_path / "model")["template"] is None
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    with pytest.raises(MachineError, match=r"chat_template.jinja: the file was not there"):
        restore(tmp_path / "model")


def test_a_tokenizer_with_one_token_more(copy, made):
    from transformers import AutoTokenizer

    larger = AutoTokenizer.from_pretrained(copy)
    larger.add_tokens(["<|more|>"])
    larger.save_pretrained(copy)
    count = len(made[1])
    with pytest.raises(MachineError, match=f"tokenizer.json: the tokenizer has {count + 1:,} tokens; it had {count:,}"):
        restore(copy)


def test_a_manifest_that_agrees_with_a_changed_tokenizer_does_not_help(copy, made):
    """Files and hashes agree, but the model was saved with fewer tokens."""
    from transformers import AutoTokenizer

    from tunekit.core.files import sha256_json
    from tunekit.model.artefact import write_manifest

    larger = AutoTokenizer.from_pretrained(copy)
    larger.add_tokens(["<|more|>"])
    larger.save_pretrained(copy)
    facts = {"base": verify(made[0] / "model")["base"]}
    write_manifest(copy, facts, larger)
    value = json.loads((copy / MANIFEST).read_text(encoding="utf-8"))
    value.pop("self")
    value["tokens"] -= 1
    (copy / MANIFEST).write_text(json.dumps(value | {"self": sha256_json(value)}), encoding="utf-8")
    with pytest.raises(MachineError, match="tokens"):
        restore(copy)


def test_a_missing_file_and_a_damaged_manifest(copy):
    (copy / "generation_config.json").unlink()
    (copy / "tokenizer.json").unlink()
    with pytest.raises(MachineError) as raised:
        verify(copy)
    assert [problem.where.rsplit("/")[-1] for problem in raised.value.problems] == [
        "generation_config.json",
        "tokenizer.json",
    ]
    (copy / MANIFEST).write_text((copy / MANIFEST).read_text(encoding="utf-8").replace("5", "6", 1), encoding="utf-8")
    with pytest.raises(MachineError, match="manifest is damaged"):
        verify(copy)


def test_a_base_of_another_revision(made, copy, tmp_path):
    """The same name, the same shapes, other weights: PEFT alone loads the adapter on it without a word."""
    from safetensors.torch import load_file, save_file

    root = made[0]
    moved = tmp_path / "base"
    shutil.copytree(root / "base", moved)
    weights = load_file(moved / "model.safetensors")
    name = "transformer.h.0.mlp.c_fc.weight"
    weights[name] = weights[name] + 1e-3
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert base_fingerprint(moved) != base_fingerprint(root / "base")
    shutil.move(root / "base", tmp_path / "kept")
    try:
        shutil.copytree(moved, root / "base")
        with pytest.raises(UserError, match=f"the base '{root / 'base'}' is not the one") as raised:
            restore(copy)
        assert "revision" in str(raised.value)
    finally:
        shutil.rmtree(root / "base")
        shutil.move(tmp_path / "kept", root / "base")
    restore(copy)


def test_the_fingerprint_does_not_depend_on_how_a_base_is_loaded(made, tmp_path):
    root = made[0]
    shutil.copytree(root / "base", tmp_path / "elsewhere")
    assert base_fingerprint(tmp_path / "elsewhere") == base_fingerprint(root / "base")


def test_somebody_elses_adapter_is_loaded_without_a_manifest(copy):
    (copy / MANIFEST).unlink()
    config = json.loads((copy / "adapter_config.json").read_text(encoding="utf-8"))
    restored = restore(copy)
    assert restored.manifest is None and restored.base_name == config["base_model_name_or_path"]


def test_an_adapter_with_a_tensor_less_or_more(copy):
    """PEFT passes over both."""
    from safetensors.torch import load_file, save_file

    (copy / MANIFEST).unlink()
    path = copy / "adapter_model.safetensors"
    whole = load_file(path)
    name = min(whole)
    save_file({key: value for key, value in whole.items() if key != name}, path)
    with pytest.raises(MachineError, match="is missing in the adapter's file"):
        restore(copy)
    save_file(whole | {name.replace("h.0", "h.7"): whole[name].clone()}, path)
    with pytest.raises(MachineError, match="is not one of this model's"):
        restore(copy)


def test_a_base_of_fresh_weights_is_made_again(tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    from tunekit.model.artefact import fresh_base
    from tunekit.model.names import TINY
    from tunekit.model.save import save_model

    block = ModelBlock(name="builtin:random?layers=1&hidden=32")
    before = torch.get_rng_state()
    facts = base_facts(block, seed=4, dtype="float32")
    assert torch.equal(torch.get_rng_state(), before)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(fresh_base(block, seed=4, dtype="float32"), config)
    save_model(model, AutoTokenizer.from_pretrained(TINY), tmp_path / "model", None, {"base": facts})
    again = restore(tmp_path / "model").model
    ids = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model.eval()(ids).logits)
    assert base_facts(block, seed=5, dtype="float32")["weights"] != facts["weights"]


def test_folders_with_nothing_to_load(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find(tmp_path / "none")
    with pytest.raises(UserError, match="no model"):
        find(tmp_path)
    (tmp_path / "plan.json").touch()
    with pytest.raises(UserError, match="no finished model"):
        find(tmp_path)


def test_licence_fields_are_read_from_the_cards_head_alone(tmp_path):
    card = tmp_path / "README.md"
    assert licence_fields(tmp_path) == {}
    card.write_text("license: mit\n", encoding="utf-8")
    assert licence_fields(tmp_path) == {}
    card.write_text("---\nlicense: other\nlicense_name: \"x y\"\ntags:\n  license: no\n---\nlicense: gpl\n", "utf-8")
    assert licence_fields(tmp_path) == {"license": "other", "license_name": "x y"}
