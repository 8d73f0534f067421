"""What can be made smaller, and how it is told that something cannot; nothing stays in the temporary directory."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest

from tunekit.compress.source import opened, weights_of
from tunekit.compress.stored import BITS, headers
from tunekit.core.errors import MachineError, UserError
from tunekit.core.progress import Silent
from tunekit.model.names import TINY

SHARDS = 3


class Told(Silent):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory, monkeypatch):
    """A temporary directory of our own, which must be empty in the end."""
    place = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # whatever was imported before
    yield place
    assert list(place.iterdir()) == []


def copied(folder, target):
    shutil.copytree(folder, target)
    return target


def refused(kind, name, match, revision=None):
    with pytest.raises(kind, match=match) as raised, opened(str(name), revision, Silent(), Path("never") / "made"):
        pytest.fail("it was opened")
    return raised.value


def equal_weights(folder, state):
    import torch
    from safetensors.torch import load_file

    found = load_file(folder / "model.safetensors")
    return all(torch.equal(value, state[name]) for name, value in found.items())


@pytest.fixture(scope="module")
def adapter(base_of, adapter_of):
    from peft import LoraConfig

    return adapter_of(base_of(), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"), move=0.3)


@pytest.fixture
def run(adapter, tmp_path):
    """What is looked at of a finished run: its plan's name, and its model."""
    folder = tmp_path / "run"
    copied(adapter[0], folder / "model")
    (folder / "plan.json").write_text("{}")
    return folder


@pytest.fixture
def sharded(base_of, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "sharded"
    model = AutoModelForCausalLM.from_pretrained(base_of())
    model.save_pretrained(folder, max_shard_size="400KB")
    for path in Path(base_of()).glob("tok*"):
        shutil.copyfile(path, folder / path.name)
    assert len(list(folder.glob("*.safetensors"))) >= SHARDS
    return folder


def test_a_runs_adapter_is_merged_first(adapter, run, here, temporary, tmp_path):
    screen = Told()
    with opened(str(run), None, screen, tmp_path / "small") as source:
        assert source.run is not None and source.run.path == run.resolve()
        assert source.folder.parent.name.startswith(".small.staging-")
        assert not (source.folder / "adapter_config.json").exists()
        assert source.facts["name"] == json.loads((run / "model" / "MANIFEST.json").read_text())["base"]["name"]
        merged = adapter[1].merge_and_unload().state_dict()
        assert equal_weights(source.folder, merged)
        assert {weight.name for weight in source.weights} == set(merged)
    assert screen.said == [f"{run}: its lora adapter is merged into the base first"]
    assert not source.folder.exists()
    assert sorted(path.name for path in run.iterdir()) == ["model", "plan.json"], "the run is left as it was"


def test_a_model_folder_is_used_where_it_is(base_of, tmp_path):
    with opened(str(base_of()), None, Silent(), tmp_path / "small") as source:
        assert source.folder == base_of() and source.run is None
        roles = {weight.name: weight.role for weight in source.weights}
    assert roles["lm_head.weight"] == "head" and roles["model.embed_tokens.weight"] == "embedding"
    assert roles["model.layers.1.mlp.up_proj.weight"] == "linear" and roles["model.norm.weight"] == "other"


def test_the_embedded_models(tmp_path):
    with opened("builtin:tiny", None, Silent(), tmp_path / "small") as source:
        assert source.folder == TINY and source.positions == 1024
    with opened("builtin:random?layers=1&hidden=32&heads=2", None, Silent(), tmp_path / "small") as source:
        assert len(source.weights) == 12 and source.folder != TINY
    assert not source.folder.exists()


@pytest.mark.parametrize("name", ["folder", "builtin:tiny"])
def test_a_revision_is_of_a_hub_id(name, base_of):
    error = refused(UserError, base_of() if name == "folder" else name, "no revisions", revision="main")
    assert error.problems[0].where == "--revision"


def test_a_hub_id_without_network():
    error = refused(MachineError, "nobody/no-such-model", "cannot be loaded from the Hub")
    assert "network" in error.fix


def test_names_of_nothing(tmp_path):
    refused(UserError, tmp_path / "nowhere", "there is no model folder")
    (tmp_path / "empty").mkdir()
    refused(UserError, tmp_path / "empty", "there is no model in this folder")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plan.json").write_text("{}")
    error = refused(UserError, tmp_path / "run", "no finished model")
    assert "tunekit resume" in error.fix
    (tmp_path / "file").write_text("x")
    refused(UserError, tmp_path / "file", "is a file")


def test_weights_of_few_bits_are_refused_by_name(base_of, tmp_path):
    folder = copied(base_of(), tmp_path / "quantized")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(config))
    error = refused(UserError, folder, r"quantized already \(gptq")
    assert error.problems[0].where == str(folder) and "quantized from" in error.fix


def reward_model(base, folder, tokenizer):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(base, num_labels=1, pad_token_id=0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_reward_model_is_refused(base_of, tokenizer, tmp_path):
    folder = reward_model(base_of(), tmp_path / "reward", tokenizer)
    error = refused(UserError, folder, "it scores answers, and writes none")
    assert "reward: [{model: ...}]" in error.fix


def cached(folder, home, name):
    """A folder as the Hub's cache has it."""
    repo = home / "hub" / f"models--{name.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    copied(folder, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    return repo / "snapshots" / commit


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hub's cache, empty."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    import transformers.utils.hub as transformers_hub

    for name in ("TRANSFORMERS_CACHE", "PYTORCH_TRANSFORMERS_CACHE"):
        if hasattr(transformers_hub, name):
            monkeypatch.setattr(transformers_hub, name, str(tmp_path / "hf" / "hub"))
    return tmp_path / "hf"


def test_a_hub_id_that_is_on_the_disk(base_of, hub, tmp_path):
    place = cached(base_of(), hub, "some/model")
    with opened("some/model", None, Silent(), tmp_path / "small") as source:
        assert source.folder == place and source.facts["commit"] == place.name
        assert source.facts["name"] == "some/model"


def test_a_reward_model_of_the_hub_is_refused(base_of, tokenizer, hub, tmp_path):
    """A head of random weights would take the place of its own."""
    cached(reward_model(base_of(), tmp_path / "reward", tokenizer), hub, "some/reward")
    refused(UserError, "some/reward", "it scores answers, and writes none")


def cut(path, size=-100):
    path.write_bytes(path.read_bytes()[:size])


def test_a_hub_models_file_that_was_cut_off(base_of, hub):
    place = cached(base_of(), hub, "some/model")
    cut(place / "model.safetensors")
    refused(MachineError, "some/model", "bytes; its head says")


def test_an_adapters_base_that_was_cut_off(base_of, adapter_of, tmp_path):
    """Told before it is merged."""
    from peft import LoraConfig

    base = copied(base_of(seed=7), tmp_path / "base")
    folder, _ = adapter_of(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    cut(base / "model.safetensors")
    refused(MachineError, folder, "bytes; its head says")


def test_a_shard_that_is_missing(sharded):
    gone = sorted(sharded.glob("*.safetensors"))[1]
    gone.unlink()
    refused(UserError, sharded, f"there is no {gone.name}")


def test_a_shard_that_was_cut_off(sharded):
    path = sorted(sharded.glob("*.safetensors"))[1]
    whole = path.stat().st_size
    cut(path)
    error = refused(MachineError, sharded, f"has {whole - 100:,} bytes; its head says {whole:,}")
    assert error.problems[0].where == str(path)


HEADS = {
    "empty": b"",
    "half a length": b"\x08\0\0",
    "a length without end": b"\xff" * 8 + b"{}",
    "a length beyond the file": (10**9).to_bytes(8, "little") + b"{}",
    "no JSON": (4).to_bytes(8, "little") + b"abcd",
    "no mapping": (2).to_bytes(8, "little") + b"[]",
    "no tensor": (7).to_bytes(8, "little") + b'{"a":1}',
    "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
}


@pytest.mark.parametrize("case", HEADS)
def test_a_shard_whose_head_is_no_head(case, sharded):
    path = sorted(sharded.glob("*.safetensors"))[0]
    path.write_bytes(HEADS[case])
    error = refused(MachineError, sharded, "the file of weights cannot be read|its head says")
    assert error.problems[0].where == str(path)


def test_a_whole_head_with_one_offset(tmp_path):
    head = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}'
    (tmp_path / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))
    with pytest.raises(MachineError, match="cannot be read"):
        headers(tmp_path)


def test_numbers_that_are_not_finite_are_counted_by_shard(sharded, tmp_path):
    from safetensors.torch import load_file, save_file

    from tunekit.compress.sizes import faulty

    path = next(path for path in sorted(sharded.glob("*.safetensors")) if "model.norm.weight" in load_file(path))
    tensors = load_file(path)
    tensors["model.norm.weight"][:3] = float("nan")
    tensors["model.norm.weight"][5] = float("-inf")
    save_file(tensors, path, {"format": "pt"})
    with opened(str(sharded), None, Silent(), tmp_path / "small") as source:
        (problem,) = faulty(source.folder)
    assert problem.what == "the tensor 'model.norm.weight' has 4 numbers that are not finite"
    assert problem.where == str(path)


def test_floats_of_eight_bits_are_looked_at_as_well(tmp_path):
    import torch
    from safetensors.torch import save_file

    from tunekit.compress.sizes import faulty

    value = torch.tensor([1.0, float("nan"), -2.0]).to(torch.float8_e4m3fn)
    save_file({"a": value, "b": value[:1].clone()}, tmp_path / "model.safetensors")
    assert [problem.what for problem in faulty(tmp_path)] == ["the tensor 'a' has 1 numbers that are not finite"]


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "no_such_kind"}', "{}"])
def test_a_config_that_cannot_be_read(text, base_of, tmp_path):
    folder = copied(base_of(), tmp_path / "broken")
    (folder / "config.json").write_text(text)
    refused(UserError, folder, "cannot|config")


def test_a_model_that_is_no_causal_one(base_of, tmp_path, tokenizer):
    from transformers import AutoConfig, AutoModel

    small = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 2048}
    AutoModel.from_config(AutoConfig.for_model("t5", **small)).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    with pytest.raises(UserError, match="transformers cannot make this model") as raised:
        weights_of(tmp_path / "t5")
    assert "causal" in raised.value.fix


def test_a_block_that_fails_leaves_nothing_either(base_of, run, here, temporary, tmp_path):
    def work():
        with opened(str(run), None, Silent(), tmp_path / "small"):
            assert len(list(tmp_path.glob(".small.staging-*"))) == 1
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        work()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_files_that_are_not_as_the_manifest_says(run):
    path = run / "model" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(MachineError, run, "not as it was saved")


def test_every_type_of_safetensors_that_a_model_may_have_is_counted():
    import torch

    for name, bits in BITS.items():
        known = {"BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "BF16": "bfloat16"}
        plain = name.replace("F", "float").replace("I", "int").replace("U8", "uint8")
        assert getattr(torch, known.get(name, plain)).itemsize * 8 == bits, name
