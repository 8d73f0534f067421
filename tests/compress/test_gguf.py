"""A .gguf file of one's own: its bytes against the package `gguf`, its weights against what transformers reads back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from tunekit.compress.backends import gguf as backend
from tunekit.compress.contract import Making
from tunekit.compress.ggml import check, convert
from tunekit.compress.source import weights_of
from tunekit.core.errors import UserError
from tunekit.model.names import TINY

gguf = pytest.importorskip("gguf", reason="gguf is an extra package")


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes a file without llama.cpp, which the slow tests ask; returns its path."""
    monkeypatch.setattr(check, "check", lambda *given, **more: None)

    def of(source, kind, config=None):
        target = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        target.mkdir()
        backend.make(Making(kind, config or backend.Config(), Path(source), target, (), 0))
        (path,) = target.iterdir()
        return path

    return of


def tensors(path):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def content(path, key):
    return gguf.GGUFReader(path).fields[key].contents()


def source_of(base):
    from safetensors.torch import load_file

    return load_file(Path(base) / "model.safetensors")


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_bytes_are_those_of_the_package_and_weigh_what_the_arithmetic_says(kind, make):
    path, weights = make(TINY, kind), source_of(TINY)
    found, kind_of = tensors(path), gguf.GGMLQuantizationType[kind.upper()]
    value = weights["model.layers.1.mlp.up_proj.weight"].float().numpy()
    assert (found["blk.1.ffn_up.weight"].data.view("u1") == gguf.quants.quantize(value, kind_of).view("u1")).all()
    head = kind_of if kind == "f16" else gguf.GGMLQuantizationType.Q8_0
    value = weights["model.embed_tokens.weight"].float().numpy()
    assert (found["token_embd.weight"].data.view("u1") == gguf.quants.quantize(value, head).view("u1")).all()
    model = json.loads((Path(TINY) / "config.json").read_text())
    planned = sum(math.prod(w.shape) * backend.bits(kind, backend.Config(), replace(w, model=model)) / 8
                  for w in weights_of(Path(TINY)))  # fmt: skip
    assert sum(int(tensor.n_bytes) for tensor in found.values()) == planned


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_the_same_logits_back(tied, make, base_of):
    """Queries and keys lie in pairs in the file: what undoes that is transformers' own."""
    import torch
    from transformers import AutoModelForCausalLM

    base = base_of(tied=tied)
    path, ids = make(base, "f32"), torch.arange(1, 40)[None]
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    after = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    assert torch.equal(after(ids).logits, before(ids).logits)
    value = before.model.layers[0].self_attn.q_proj.weight.detach().numpy()
    stored = tensors(path)["blk.0.attn_q.weight"].data
    assert (stored[[0, 1, 2, 32]] == value[[0, 16, 1, 32]]).all()  # heads of 32 rows: i and i + 16 together


def test_what_the_file_says_of_model_and_tokenizer(make):
    path = make(TINY, "f16")
    says = {key: content(path, key) for key in gguf.GGUFReader(path).fields if not key.startswith("GGUF")}
    tokens, types = says.pop("tokenizer.ggml.tokens"), says.pop("tokenizer.ggml.token_type")
    assert says["general.architecture"] == "llama" and says["general.file_type"] == 1
    assert says["llama.context_length"] == 1024 and says["llama.attention.key_length"] == 32
    assert says["tokenizer.ggml.pre"] == "smollm" and not says["tokenizer.ggml.add_bos_token"]
    assert tokens[2] == "<|im_end|>" == tokens[says["tokenizer.ggml.eot_token_id"]]
    assert tokens[says["tokenizer.ggml.eos_token_id"]] == "<|im_end|>" and types[:4] == [3, 3, 3, 3]
    assert types[tokens.index("我")] == 4 and len(tokens) == 2048  # a Han character stands alone
    assert says["tokenizer.chat_template"] == (Path(TINY) / "chat_template.jinja").read_text(encoding="utf-8")


def test_a_weight_too_large_for_16_bits_is_refused(make, base_of, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "large"
    folder.mkdir()
    for file in base_of().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name][3, 4] = 7e4
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="a weight is 7e\\+04: 16-bit floats end at 65504") as raised:
        make(folder, "f16")
    assert name in str(raised.value) and "bf16" in raised.value.fix
    assert tensors(make(folder, "bf16"))["blk.0.ffn_up.weight"].data.shape == (96, 128)  # bytes of 64 values
    weights[name][3, 4] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="not a finite number"):
        make(folder, "q8_0")


def test_layers_left_as_they_are_keep_their_values(make, base_of):
    base = base_of(dtype="bfloat16")
    found = tensors(make(base, "q8_0", backend.Config(skip=("layers.0.mlp", "v_proj"))))
    kinds = {name: tensor.tensor_type.name for name, tensor in found.items()}
    assert kinds["blk.0.ffn_up.weight"] == kinds["blk.1.attn_v.weight"] == "BF16"
    assert kinds["blk.1.ffn_up.weight"] == kinds["token_embd.weight"] == "Q8_0"


def test_more_tokens_than_rows_are_refused(base_of, make, tmp_path, tokenizer):
    from transformers import AutoTokenizer

    more = AutoTokenizer.from_pretrained(base_of())
    more.add_tokens(["<|one more|>"])
    folder = tmp_path / "more"
    folder.mkdir()
    for file in base_of().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    more.save_pretrained(folder)
    with pytest.raises(UserError, match="the tokenizer has an id 2,048, the model 2,048 rows"):
        make(folder, "f16")


def test_the_plan_names_what_has_no_place(base_of, monkeypatch):
    """A tensor that the family's graph does not know is no detail to leave out."""
    from tunekit.compress.ggml import families

    config = families.config_of(json.loads((base_of() / "config.json").read_text()))
    monkeypatch.setattr(gguf, "get_tensor_name_map", lambda arch, layers: gguf.TensorNameMap(arch, 1))
    with pytest.raises(UserError, match=r"the tensor 'model.layers.1.\S+' has no place in llama.cpp's 'llama'"):
        convert.plan(base_of(), config, "f16", ())
