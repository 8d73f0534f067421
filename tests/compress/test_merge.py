"""Merging: the weights are those of PEFT's own merge, in a plain folder; what cannot be merged is refused in time."""

from __future__ import annotations

import json

import pytest

from tunekit.compress.merge import Request, merge
from tunekit.core.errors import MachineError, UserError
from tunekit.core.progress import Silent
from tunekit.core.registry import QUANTIZERS

KINDS = {
    "lora": ("LoraConfig", {"r": 4, "target_modules": "all-linear"}),
    "dora": ("LoraConfig", {"r": 4, "target_modules": "all-linear", "use_dora": True}),
    "rslora": ("LoraConfig", {"r": 4, "target_modules": "all-linear", "use_rslora": True}),
    "ia3": ("IA3Config", {}),
}


def config_of(name, **values):
    import peft

    return getattr(peft, name)(task_type="CAUSAL_LM", **values)


def loaded(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **options)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_those_of_pefts_own_merge(arch, kind, base_of, adapter_of, rows, here, tmp_path):
    import torch
    from peft import PeftModel

    name, values = KINDS[kind]
    base = base_of(arch, tied=arch == "gpt2")
    folder, _ = adapter_of(base, config_of(name, **values), move=0.3)
    proof = merge(Request(folder, tmp_path / "merged", rows=rows), Silent())
    ours = loaded(tmp_path / "merged").state_dict()
    peft = PeftModel.from_pretrained(loaded(base), folder).merge_and_unload().state_dict()
    assert ours.keys() == peft.keys()
    for key, value in peft.items():
        assert torch.equal(ours[key], value), key
    assert 1e3 * proof["merged"]["largest_logit_difference"] < proof["effect"]["largest_logit_difference"]


def test_dtypes_and_what_travels_along(base_of, adapter_of, rows, here, tmp_path, tokenizer):
    import torch
    from transformers import AutoTokenizer, GenerationConfig

    from tunekit.model.artefact import verify

    base = base_of(dtype="bfloat16", seed=3)
    (base / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- license: x\n---\nhello\n", encoding="utf-8")
    (base / "LICENSE.txt").write_text("the licence", encoding="utf-8")
    folder, _ = adapter_of(base, config_of("LoraConfig", **KINDS["lora"][1]), move=0.3)
    proof = merge(Request(folder, tmp_path / "own", rows=rows), Silent())
    merge(Request(folder, tmp_path / "wide", dtype="float32", rows=rows), Silent())
    own, wide = loaded(tmp_path / "own", dtype="auto"), loaded(tmp_path / "wide", dtype="auto")
    assert own.dtype == torch.bfloat16, "the base's own type"
    assert wide.dtype == torch.float32
    for (name, narrow), full in zip(own.state_dict().items(), wide.state_dict().values(), strict=True):
        assert torch.equal(narrow, full.to(torch.bfloat16)), f"{name} was not merged in float32"
    assert proof["limits"].keys() == {"mean_kl", "top1_agreement"}
    assert proof["merged"]["mean_kl"] <= proof["limits"]["mean_kl"]
    assert (tmp_path / "own" / "LICENSE.txt").read_text(encoding="utf-8") == "the licence"
    assert "license: apache-2.0" in (tmp_path / "own" / "README.md").read_text(encoding="utf-8")
    assert 5 in GenerationConfig.from_pretrained(tmp_path / "own").eos_token_id
    assert AutoTokenizer.from_pretrained(tmp_path / "own").chat_template == tokenizer.chat_template
    manifest = verify(tmp_path / "own")
    assert manifest["merged"] == "LORA"
    assert manifest["base"]["licence"] == {"license": "apache-2.0"}
    assert json.loads((tmp_path / "own" / "merge.json").read_text(encoding="utf-8")) == proof


@pytest.mark.parametrize("wide", ["model.norm", "model.embed_tokens", "model.layers.1.mlp.down_proj"])
def test_each_tensor_keeps_its_type_on_the_disk(wide, base_of, adapter_of, rows, here, tmp_path):
    """Routers and their biases often lie in float32 among bfloat16: rounding them chooses other experts."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    base = tmp_path / "base"
    shutil.copytree(base_of(dtype="bfloat16", seed=3), base)
    wide, stored = f"{wide}.weight", load_file(base / "model.safetensors")
    stored[wide] = stored[wide].float() + 1e-5  # no number of bfloat16
    save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
    folder, _ = adapter_of(base, config_of("LoraConfig", r=4, target_modules=["q_proj", "down_proj"]), move=0.3)
    merge(Request(folder, tmp_path / "own", rows=rows), Silent())
    merge(Request(folder, tmp_path / "narrow", dtype="bfloat16", rows=rows), Silent())
    merge(Request(folder, tmp_path / "wide", dtype="float32", rows=rows), Silent())
    own, full = (load_file(tmp_path / name / "model.safetensors") for name in ("own", "wide"))
    for name, value in own.items():
        assert value.dtype == stored[name].dtype, name
        assert torch.equal(value, full[name].to(value.dtype)), name
    narrow = load_file(tmp_path / "narrow" / "model.safetensors")
    assert {value.dtype for value in narrow.values()} == {torch.bfloat16}
    assert not torch.equal(narrow[wide].float(), own[wide])
    assert loaded(tmp_path / "own", dtype="auto").dtype == torch.bfloat16


TABLES = {
    "lora on the embedding": (lambda table: {"target_modules": [table]}, False),
    "lora on the head": (lambda table: {"target_modules": ["lm_head"]}, False),
    "the head trained": (lambda table: {"target_modules": "all-linear", "modules_to_save": ["lm_head"]}, False),
    "the embedding trained": (lambda table: {"target_modules": "all-linear", "modules_to_save": [table]}, False),
    "tokens trained": (lambda table: {"target_modules": "all-linear", "trainable_token_indices": [7, 8]}, True),
}


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("case", TABLES)
def test_tied_tables_come_out_right(arch, case, base_of, adapter_of, logits, tmp_path):
    """PEFT's own merge of LoRA on one of two tied tables changes the other with it."""
    from tunekit.compress.merge import merged_model
    from tunekit.model.restore import attach, find, load_base

    values, stays_tied = TABLES[case]
    config = config_of("LoraConfig", r=4, **values("wte" if arch == "gpt2" else "embed_tokens"))
    folder, model = adapter_of(base_of(arch, tied=True), config)
    wanted = logits(model)
    found = find(folder)
    merged_model(attach(load_base(found, dtype="float32"), found)).save_pretrained(tmp_path)
    again = loaded(tmp_path)
    assert (logits(again) - wanted).abs().max() < 1e-4
    assert again.config.tie_word_embeddings is stays_tied
    if "lora on" in case:  # the fault itself
        spoiled = model.merge_and_unload()
        assert (logits(spoiled) - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("tied", [False, True])
def test_added_tokens_are_there_after_the_merge(tied, base_of, adapter_of, logits, tmp_path, tokenizer):
    from tunekit.compress.merge import merged_model
    from tunekit.model.restore import attach, find, load_base

    count = len(tokenizer)
    tokens = [count, count + 1]
    config = config_of("LoraConfig", r=4, target_modules="all-linear", trainable_token_indices=tokens)
    folder, model = adapter_of(base_of(tied=tied), config, rows=count + 2)
    found = find(folder)
    again = merged_model(attach(load_base(found, dtype="float32"), found))
    assert again.get_input_embeddings().weight.shape[0] == count + 2
    assert (logits(again) - logits(model)).abs().max() < 1e-4


REFUSED = {
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 4}, "before the text"),
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 4}, "before the text"),
    "llama-adapter": ("AdaptionPromptConfig", {"adapter_len": 4, "adapter_layers": 2}, "attention to learned tokens"),
    "alora": ("LoraConfig", {"r": 4, "target_modules": ["q_proj"], "alora_invocation_tokens": [1]}, "always on"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_merged_is_refused_before_the_base_is_loaded(kind, base_of, adapter_of, tmp_path, monkeypatch):
    from tunekit.compress import merge as module

    name, values, why = REFUSED[kind]
    folder, _ = adapter_of(base_of(), config_of(name, **values))
    monkeypatch.setattr(module, "load_base", lambda *_, **__: pytest.fail("the base was loaded"))
    with pytest.raises(UserError, match=why):
        merge(Request(folder, tmp_path / "merged"), Silent())
    assert list(tmp_path.iterdir()) == []


def test_every_kind_that_is_known_not_to_merge_fails_in_peft():
    """The list holds no kind that PEFT's own code can merge."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils import PeftType

    from tunekit.compress.merge import NOT_MERGEABLE

    known = {str(kind.value) for kind in PeftType} | {"TUNEKIT_BOTTLENECK"}
    assert set(NOT_MERGEABLE) <= known
    assert {"LORA", "IA3", "LN_TUNING", "OFT", "VERA", "TRAINABLE_TOKENS"}.isdisjoint(NOT_MERGEABLE)
    assert len(PEFT_TYPE_TO_TUNER_MAPPING) > len(NOT_MERGEABLE)


def test_refusals_of_folders(base_of, adapter_of, rows, tmp_path):
    base = base_of()
    folder, _ = adapter_of(base, config_of("LoraConfig", r=4, target_modules=["q_proj"]))
    with pytest.raises(UserError, match="whole model"):
        merge(Request(base, tmp_path / "merged"), Silent())
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(UserError, match="exists already"):
        merge(Request(folder, tmp_path / "there"), Silent())
    weights = folder / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(MachineError, match=r"adapter_model\.safetensors"):
        merge(Request(folder, tmp_path / "merged"), Silent())


def test_a_base_that_is_quantized_on_the_disk_is_refused(base_of, adapter_of, tmp_path):
    import shutil

    base = tmp_path / "base"
    shutil.copytree(base_of(), base)
    folder, _ = adapter_of(base, config_of("LoraConfig", r=4, target_modules=["q_proj"]))
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="quantized on the disk"):
        merge(Request(folder, tmp_path / "merged"), Silent())


@pytest.mark.parametrize("options", [(), ("--dtype", "float32")])
def test_a_base_whose_weights_are_cut_off_is_a_fault_of_the_machine(options, base_of, adapter_of, tmp_path):
    import shutil

    from typer.testing import CliRunner

    from tunekit.cli.app import app

    base = tmp_path / "base"
    shutil.copytree(base_of(), base)
    folder, _ = adapter_of(base, config_of("LoraConfig", r=4, target_modules=["q_proj"]))
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    done = CliRunner().invoke(app, ["merge", str(folder), "--output", str(tmp_path / "merged"), *options, "--json"])
    told = json.loads(done.stdout.splitlines()[-1])
    assert done.exit_code == 4 and "its head says" in json.dumps(told) and str(weights) in json.dumps(told)
    assert [path.name for path in tmp_path.iterdir()] == ["base"], "nothing is left behind"


def test_a_start_that_peft_computes_anew_is_refused(base_of, adapter_of, tmp_path):
    config = config_of("LoraConfig", r=4, target_modules=["q_proj"], init_lora_weights="pissa_niter_2")
    folder, _ = adapter_of(base_of(), config)
    with pytest.raises(UserError, match="pissa_niter_2"):
        merge(Request(folder, tmp_path / "merged"), Silent())


def test_an_adapter_of_a_quantized_base_goes_into_full_weights_and_says_so(base_of, adapter_of, rows, here, tmp_path):
    import torch
    from peft import PeftModel

    class Told(Silent):
        said = ""

        def say(self, text: str) -> None:
            self.said += text

    base = base_of()
    block = QUANTIZERS.load("bnb").Config(kind="bnb", bits=4, skip=("lm_head",))
    facts = {"quantize": json.loads(block.model_dump_json())}  # as a run writes it: lists where there were tuples
    folder, _ = adapter_of(base, config_of("LoraConfig", r=4, target_modules="all-linear"), move=0.3, facts=facts)
    screen = Told()
    proof = merge(Request(folder, tmp_path / "merged", rows=rows), screen)
    assert "full-precision" in screen.said
    full = PeftModel.from_pretrained(loaded(base), folder).merge_and_unload().state_dict()
    ours = loaded(tmp_path / "merged")
    assert not getattr(ours.config, "quantization_config", None)
    assert all(torch.equal(value, full[key]) for key, value in ours.state_dict().items())
    assert proof["as_trained"]["largest_logit_difference"] > proof["merged"]["largest_logit_difference"]
