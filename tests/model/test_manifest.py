"""The manifest of a finished model: each thing that may have changed since is refused by name."""

from __future__ import annotations

import json
import shutil

import pytest

from tunekit.core.errors import MachineError, UserError
from tunekit.core.front_matter import license_of
from tunekit.model.artefact import MANIFEST, base_facts, base_fingerprint, check_base, verify
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
    assert manifest["base"]["licence"] == {"license": "mit"}, "a link to a file that is not here is none"
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


def test_a_checkpoint_is_named_as_one(tmp_path):
    """Its manifest is whole, and of another form."""
    from tunekit.train.checkpoint import put_in_place

    run = tmp_path / "run"
    (tmp_path / "staged").mkdir(parents=True)
    (tmp_path / "staged" / "adapter_config.json").write_text("{}", encoding="utf-8")
    folder = put_in_place(tmp_path / "staged", run / "checkpoints", 3, {})
    (run / "plan.json").touch()
    for look in (find, verify):
        with pytest.raises(UserError, match="this is a checkpoint") as raised:
            look(folder)
        assert str(run) in raised.value.problems[0].fix


def test_a_base_without_weights_has_no_fingerprint(made, tmp_path):
    """The hash of nothing would be the same for every one of them."""
    from safetensors.torch import save_file

    shutil.copytree(made[0] / "base", tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        base_facts(ModelBlock(name=str(tmp_path / "base")), seed=0, dtype="float32")
    save_file({}, tmp_path / "base" / "model.safetensors")
    with pytest.raises(UserError, match="empty"):
        base_fingerprint(tmp_path / "base")


def test_only_the_files_that_are_loaded_count(made, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    whole = base_fingerprint(made[0] / "base")
    shutil.copytree(made[0] / "base", tmp_path / "base")
    save_file({"stray": torch.zeros(2)}, tmp_path / "base" / "consolidated.safetensors")
    assert base_fingerprint(tmp_path / "base") == whole
    weights = load_file(tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "model-1.safetensors")
    index = tmp_path / "base" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, "model-1.safetensors")}), encoding="utf-8")
    assert base_fingerprint(tmp_path / "base") == whole
    (tmp_path / "base" / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model-1\.safetensors"):
        base_fingerprint(tmp_path / "base")
    index.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="index of the weights"):
        base_fingerprint(tmp_path / "base")


def test_making_a_base_from_a_seed_changes_no_draws():
    import random

    import numpy
    import torch
    from transformers import AutoModelForCausalLM, set_seed

    from tunekit.model.artefact import fresh_base
    from tunekit.model.tokenizer import load_config

    block = ModelBlock(name="builtin:random?layers=1&hidden=32")
    set_seed(4)
    wanted = AutoModelForCausalLM.from_config(load_config(block), dtype=torch.float32).state_dict()

    def draws():
        set_seed(9)
        yield
        yield random.random(), float(numpy.random.rand()), float(torch.rand(()))

    plain, used = draws(), draws()
    next(plain)
    expected = next(plain)
    next(used)
    facts = base_facts(block, seed=4, dtype="float32")
    check_base(facts, block)
    made = fresh_base(block, seed=4, dtype="float32").state_dict()
    assert next(used) == expected
    assert all(torch.equal(made[name], value) for name, value in wanted.items())


CARDS = {
    "license: mit\n": {},
    '---\nlicense: other\nlicense_name: "x y"\ntags:\n  license: no\n---\nlicense: gpl\n':
        {"license": "other", "license_name": "x y"},
    "---\nlicense: mit  # as always\n---\n": {"license": "mit"},
    "---\nlicense:\n- mit\n- apache-2.0\n---\n": {"license": ["mit", "apache-2.0"]},
    "---\nlicense: other\nlicense_name: 'a: b'\n---\n": {"license": "other", "license_name": "a: b"},
    "---\nlicense: other\nlicense_link: LICENSE\n---\n": {"license": "other"},
    "---\nlicense: [mit\n---\n": {},
}  # fmt: skip


@pytest.mark.parametrize("card", CARDS)
def test_the_licence_is_read_from_the_cards_head_as_yaml(card, tmp_path):
    assert license_of(tmp_path) == license_of(None) == {}
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert license_of(tmp_path) == CARDS[card]


def test_a_link_to_a_licence_that_travels_along_is_kept(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_link: LICENSE\n---\n", encoding="utf-8")
    assert license_of(tmp_path, beside=["LICENSE"]) == {"license": "other", "license_link": "LICENSE"}
