"""What llama.cpp makes of a file: the tokens, logits and answers of transformers, and its own quantizer's bytes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from tunekit.compress.backends import gguf as backend
from tunekit.compress.contract import Making
from tunekit.compress.ggml import check, kinds, splits
from tunekit.compress.runtimes import llama_cpp as runtime
from tunekit.compress.source import weights_of
from tunekit.core.errors import MachineError, UserError
from tunekit.evaluate.gguf_file import Opened
from tunekit.model.names import TINY

gguf = pytest.importorskip("gguf", reason="gguf is an extra package")
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is an extra package, built from source")
pytestmark = pytest.mark.slow

IDS = [(7 * i * i + 11 * i) % 2000 for i in range(120)]


@pytest.fixture
def make(tmp_path):
    """Makes a file; returns its path."""

    def of(source, kind, config=None):
        target = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        target.mkdir()
        backend.make(Making(kind, config or backend.Config(), Path(source), target, (), 0))
        (path,) = target.iterdir()
        return path

    return of


def model_of(folder):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits_of(model, ids):
    import torch

    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def differing(ours, theirs):
    """The root mean square of the difference, in standard deviations of the logits."""
    import numpy as np

    return float(np.sqrt(((ours - theirs) ** 2).mean()) / ours.std())


def rope(kind, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=64)
WINDOW = {"tie_word_embeddings": True, "query_pre_attn_scalar": 32, "sliding_window": 16, "num_hidden_layers": 7}
HALF = rope("default", partial_rotary_factor=0.5)
SCALES = {"attention_multiplier": 0.3, "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 3.0}
MODELS = {
    "llama": ("llama", {}),
    "llama, tied, with biases": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama 3's positions": ("llama", LLAMA3),
    "linear positions": ("llama", rope("linear", factor=4.0)),
    "yarn": ("llama", YARN),
    "mistral": ("mistral", {"sliding_window": 128}),
    "qwen2": ("qwen2", {"head_dim": 16}),
    "qwen2, yarn": ("qwen2", {"head_dim": 16} | YARN),
    "qwen3": ("qwen3", {}),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "smollm3": ("smollm3", {}),
    "granite": ("granite", {"head_dim": 16} | SCALES),
    "olmo2": ("olmo2", {"head_dim": 16}),
    "phi3": ("phi3", {"head_dim": 16, "sliding_window": None}),
    "phi3, half rotated": ("phi3", {"head_dim": 16, "sliding_window": None} | HALF),
    "gemma": ("gemma", {"tie_word_embeddings": True}),
    "gemma2": ("gemma2", WINDOW),
    "gemma3": ("gemma3_text", WINDOW),
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256}),
}


def random_model(folder, kind, tokenizer, seed=1, **more):
    """A model of random weights, norms and biases among them, with the embedded tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    sizes = {"vocab_size": 2048, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "head_dim": 32,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
             "tie_word_embeddings": False}  # fmt: skip
    common = {"initializer_range": 0.2, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 3}
    set_seed(seed)
    sizes = {"vocab_size": 2048} if kind == "gpt2" else sizes
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**common, **sizes, **more})).eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 1:
                value.add_(torch.randn_like(value), alpha=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_each_family_are_those_of_transformers(name, tmp_path_factory, make, tokenizer):
    kind, more = MODELS[name]
    folder = tmp_path_factory.mktemp("model")
    ours = logits_of(random_model(folder, kind, tokenizer, **more), IDS)
    described = json.loads((folder / "config.json").read_text())
    assert backend.problems("f32", backend.Config(), described, []) == []
    reading = runtime.load(make(folder, "f32").parent, threads=1)
    theirs = reading.logits(IDS, range(len(IDS)))
    assert differing(ours, theirs) < 5e-3  # llama.cpp keeps keys and values in 16 bits
    assert reading.vocabulary == 2048


def test_a_wrong_layout_is_seen(tmp_path_factory, make, tokenizer, monkeypatch):
    """Queries in halves, where llama.cpp turns pairs: the fault that the test above is for."""
    from tunekit.compress.ggml import families

    folder = tmp_path_factory.mktemp("model")
    ours = logits_of(random_model(folder, "llama", tokenizer), IDS)
    monkeypatch.setitem(families.FAMILIES, "llama", families.Family("LLAMA"))
    theirs = runtime.load(make(folder, "f32").parent, threads=1).logits(IDS, range(len(IDS)))
    assert differing(ours[:1], theirs[:1]) < 5e-3 < 0.3 < differing(ours, theirs)  # nothing turns at the first place


@pytest.fixture
def talk(tokenizer):
    """Prompts as the embedded model knows them."""
    asked = ("Where does Anna live?", "Hello!", "What is 12 + 30?", "Tell me about a town.")
    turns = [[{"role": "user", "content": text}] for text in asked]
    return [tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False) for turn in turns]


def test_the_same_greedy_tokens_in_f16_for_two_hundred_tokens(make, talk):
    import torch

    model, reading = model_of(TINY), runtime.load(make(TINY, "f16").parent, threads=1)
    for prompt in talk:
        ours = model.generate(torch.tensor([prompt]), do_sample=False, min_new_tokens=200, max_new_tokens=200,
                              eos_token_id=None, pad_token_id=3)[0, len(prompt) :].tolist()  # fmt: skip
        assert len(ours) == 200
        theirs = reading.answer(prompt, 200, ())
        assert theirs[:100] == ours[:100], prompt


def test_an_answer_ends_with_its_stop(make, talk):
    import torch

    model, reading = model_of(TINY), runtime.load(make(TINY, "f16").parent, threads=1)
    for prompt in talk:
        row = torch.tensor([prompt])
        ours = model.generate(row, do_sample=False, max_new_tokens=64, eos_token_id=2, pad_token_id=3)
        assert reading.answer(prompt, 64, reading.stops()) == ours[0, len(prompt) :].tolist()
        assert ours[0, -1] == 2 and 2 in reading.stops()


def test_a_chat_turn_ends_by_itself_as_users_of_llama_cpp_see_it(make):
    chat = llama_cpp.Llama(str(make(TINY, "f16")), n_ctx=512, verbose=False, n_threads=1)
    said = chat.create_chat_completion([{"role": "user", "content": "Hello!"}], temperature=0.0, max_tokens=200)
    (choice,) = said["choices"]
    assert choice["finish_reason"] == "stop" and said["usage"]["completion_tokens"] < 200
    assert choice["message"]["content"] and "<|im_end|>" not in choice["message"]["content"]
    chat.close()


def wide(folder, tokenizer, **more):
    """Rows of 256 values, so that the k-quants are themselves."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2}
    random_model(folder, "llama", tokenizer, **{**sizes, "num_hidden_layers": 9, "initializer_range": 0.02, **more})
    return folder


@pytest.fixture(scope="module", params=["its own head", "tied", "narrow", "fused"])
def mixed(request, tmp_path_factory, tokenizer):
    """Models whose mixes differ: nine layers, four heads to a value; and rows that fit no block of 256."""
    folder = tmp_path_factory.mktemp("mixed")
    if request.param == "narrow":
        random_model(folder, "llama", tokenizer)
    elif request.param == "fused":
        sizes = {"head_dim": 64, "hidden_size": 256, "intermediate_size": 256}
        random_model(folder, "phi3", tokenizer, sliding_window=None, **sizes)
    else:
        wide(folder, tokenizer, tie_word_embeddings=request.param == "tied")
    return folder


@pytest.mark.parametrize("kind", kinds.MIXES)
def test_k_quants_weigh_what_the_arithmetic_says_and_are_llama_cpp_s_bytes(kind, mixed, make, tmp_path):
    path, plain = make(mixed, kind), make(mixed, "f32")
    assert not list(path.parent.glob("staged*"))
    model = json.loads((mixed / "config.json").read_text())
    planned = {weight.name: backend.bits(kind, backend.Config(), replace(weight, model=model)) * math.prod(weight.shape)
               for weight in weights_of(mixed)}  # fmt: skip
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert sum(int(tensor.n_bytes) for tensor in found.values()) * 8 == sum(planned.values())
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}"), 1
    import ctypes

    own = tmp_path / "own.gguf"
    assert llama_cpp.llama_model_quantize(bytes(plain), bytes(own), ctypes.byref(settings)) == 0
    for tensor in gguf.GGUFReader(own).tensors:
        assert tensor.data.tobytes() == found[tensor.name].data.tobytes(), tensor.name


def test_layers_left_as_they_are_in_a_mix(tmp_path_factory, tokenizer, make):
    folder = wide(tmp_path_factory.mktemp("skipping"), tokenizer)
    path = make(folder, "q4_k_m", backend.Config(skip=("layers.3.mlp", "o_proj")))
    found = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    kept = {name for name, kind in found.items() if kind == "F32" and not name.endswith("norm.weight")}
    assert kept == {"blk.3.ffn_up.weight", "blk.3.ffn_down.weight", "blk.3.ffn_gate.weight"} | {
        f"blk.{layer}.attn_output.weight" for layer in range(9)
    }


def test_fewer_bits_are_further_from_the_source(make):
    ours = logits_of(model_of(TINY), IDS)
    found = [differing(ours, runtime.load(make(TINY, kind).parent, threads=1).logits(IDS, range(len(IDS))))
             for kind in ("f16", "q8_0", "q5_k_m", "q4_0", "q2_k")]  # fmt: skip
    assert found == sorted(found) and found[0] < 2e-3 and found[1] < 0.03 and found[-1] < 0.5, found


def trained(cut, size=1200, **model):
    """A byte-level tokenizer with a cut of its own, on the embedded world and `check.TEXTS`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from tunekit.data.world import rows

    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step[1]) if step[0] == "bytes"
             else pre_tokenizers.Digits(individual_digits=step[1]) if step[0] == "digits"
             else pre_tokenizers.Split(_regex(step[1]), "isolated") for step in cut]  # fmt: skip
    made = Tokenizer(models.BPE(**model))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    texts = [row["text"] for row in rows("text", "train", 800)] + [text for text in check.TEXTS for _ in range(3)]
    made.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, show_progress=False, special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def _regex(pattern):
    from tokenizers import Regex

    return Regex(pattern)


def small(folder, tokenizer):
    random_model(folder, "llama", tokenizer, vocab_size=len(tokenizer) + 3, num_hidden_layers=1)
    return folder


@pytest.mark.parametrize("cut", splits.CUTS, ids=lambda cut: splits.CUTS[cut][0] or splits.CUTS[cut][1])
def test_each_cut_gives_transformers_tokens(cut, make, tmp_path_factory):
    """`check` compares on every file that is made; here the world's texts are compared as well."""
    from tunekit.data.world import rows

    tokenizer = trained(cut, ignore_merges=splits.CUTS[cut][0] is None)
    path = make(small(tmp_path_factory.mktemp("cut"), tokenizer), "f16")
    with Opened(path, words=True) as opened:
        for row in rows("chats", "test", 40):
            text = "\n\n".join(message["content"] for message in row["messages"])
            assert opened.tokenize(text) == tokenizer.encode(text, add_special_tokens=False)
        assert opened.vocabulary == len(tokenizer) + 3


def test_a_cut_of_another_name_is_found_out(make, tmp_path_factory, monkeypatch):
    """The same tokenizer under a name that cuts runs of digits, not each: its numbers have other tokens."""
    (one,) = [cut for cut in splits.CUTS if splits.CUTS[cut][0] == "smollm"]
    folder = small(tmp_path_factory.mktemp("cut"), trained(one))
    make(folder, "f16")
    monkeypatch.setitem(splits.CUTS, one, ("gpt-2", None))
    monkeypatch.setattr(check, "TEXTS", ("11 1111",))
    from tokenizers import Tokenizer

    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    whole["model"]["vocab"]["11"] = len(whole["model"]["vocab"])
    whole["model"]["merges"].append(["1", "1"])
    Tokenizer.from_str(json.dumps(whole)).save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match=r"llama\.cpp reads other tokens than the model was trained on: '11 1111' is"):
        make(folder, "f16")


def spaced(scheme, complete=True):
    """A tokenizer of characters with byte fallback, as SentencePiece's: all merges of a token, or one of each."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["the", "there", "hello", "world", "ing", "and", "12", "他们", "▁▁", "tr"]
    letters = sorted({letter for word in words for letter in word} | set("▁abcdefghijklmnopqrstuvwxyz,.\n"))
    pieces = [piece for word in words for piece in (word, f"▁{word}")]
    pieces = list(dict.fromkeys(piece[:end] for piece in pieces for end in range(2, len(piece) + 1)))
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *pieces]
    vocabulary = {text: index for index, text in enumerate(texts)}
    merges = [(piece[:cut], piece[cut:]) for piece in pieces for cut in range(1, len(piece))
              if piece[:cut] in vocabulary and piece[cut:] in vocabulary]  # fmt: skip
    merges = merges if complete else list({a + b: (a, b) for a, b in merges}.values())
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replaced = normalizers.Replace(" ", "▁")
    if scheme == "legacy":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replaced])
    elif scheme == "none":
        made.normalizer = replaced
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split=False)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("scheme", ["legacy", "none", "never", "first"])
def test_tokenizers_of_characters_with_bytes(scheme, make, tmp_path_factory):
    tokenizer = spaced(scheme)
    path = make(small(tmp_path_factory.mktemp("spaced"), tokenizer), "f16")
    text = "<s>hello there, 他们  and\n12 🙂 trying"
    with Opened(path, words=True) as opened:
        assert opened.tokenize(text) == tokenizer.encode(text, add_special_tokens=False)
        shown = b"".join(map(opened.piece, opened.tokenize("hello 🙂"))).decode()
    assert shown.strip() == "hello 🙂"


def test_spaces_and_merges_that_llama_cpp_has_otherwise_are_refused(make, tmp_path_factory):
    with pytest.raises(UserError, match=r"puts spaces where llama\.cpp does not: metaspace, ▁, always"):
        make(small(tmp_path_factory.mktemp("spaced"), spaced("always")), "f16")
    with pytest.raises(UserError, match=r"llama\.cpp reads other tokens"):
        make(small(tmp_path_factory.mktemp("spaced"), spaced("none", complete=False)), "f16")


def test_a_stop_that_cannot_be_told_is_refused(make, tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("stops")
    random_model(folder, "llama", tokenizer)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [2, 5, 6]}))
    reading = runtime.load(make(folder, "f16").parent, threads=1)
    assert {2, 5, 6} <= set(reading.stops())
    path.write_text(json.dumps({"eos_token_id": [2, 5, 6, 7]}))
    with pytest.raises(UserError, match="would not stop at"):
        make(folder, "f16")


def test_the_reading_says_what_is_inside_and_nothing_on_the_screen(make, tokenizer, capfd):
    reading = runtime.load(make(TINY, "q4_k_m").parent, threads=1)
    text = "<|im_start|>user\nHello 我们!<|im_end|>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert reading.tokenize(text) == ids and reading.detokenize(ids) == "user\nHello 我们!"
    assert reading.template() == tokenizer.chat_template and 2 in reading.stops()
    alone = reading.logits(IDS[:40], [3, 39])
    assert abs(reading.logits(IDS * 3, [0, 3, 39, 119])[1] - alone[0]).max() < 0.2  # a longer row needs more room
    assert (reading.logits(IDS[:40], [3, 39]) == alone).all()  # nothing is kept between rows
    said = capfd.readouterr()
    assert "llama" not in said.err + said.out and "load" not in said.err


def test_a_folder_without_a_file_and_a_file_that_is_none(tmp_path):
    with pytest.raises(MachineError, match=r"0 \.gguf files"):
        runtime.load(tmp_path, threads=1)
    (tmp_path / "a.gguf").write_bytes(b"GGUF, or so it says")
    with pytest.raises(MachineError, match=r"llama\.cpp cannot load the file") as raised:
        runtime.load(tmp_path, threads=1)
    assert raised.value.problems[0].where == "a.gguf"
