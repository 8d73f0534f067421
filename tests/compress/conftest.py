"""Bases and adapters on disk, tiny and random, and proofs made in this process where the process is not the point."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from pathlib import Path

import pytest

from tunekit.model.names import TINY


@pytest.fixture(scope="session", autouse=True)
def quiet_machine(tmp_path_factory):
    """One thread, no network, and a data cache of our own."""
    import torch

    before = {name: os.environ.get(name) for name in ("HF_HOME", "HF_HUB_OFFLINE")}
    os.environ |= {"HF_HOME": str(tmp_path_factory.mktemp("hf")), "HF_HUB_OFFLINE": "1"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for name, value in before.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def tokenizer():
    """The embedded one."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="session")
def base_of(tmp_path_factory, tokenizer):
    """The folder of a base with random weights: its architecture, whether it is tied, its dtype and seed."""
    made = {}

    def build(arch: str = "llama", *, tied: bool = False, dtype: str = "float32", seed: int = 1) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, set_seed

        key = (arch, tied, dtype, seed)
        if key not in made:
            common = {"vocab_size": len(tokenizer), "tie_word_embeddings": tied}
            common |= {"eos_token_id": 0, "bos_token_id": None}
            sizes = {
                "gpt2": {"n_layer": 2, "n_embd": 64, "n_head": 2, "n_positions": 128},
                "llama": {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1,
                          "intermediate_size": 96, "head_dim": 32, "max_position_embeddings": 128,
                          "initializer_range": 0.2},
            }  # fmt: skip
            set_seed(seed)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **sizes[arch], **common))
            made[key] = tmp_path_factory.mktemp("base") / f"{arch}-{len(made)}"
            model.to(getattr(torch, dtype)).save_pretrained(made[key])
            tokenizer.save_pretrained(made[key])
        return made[key]

    return build


@pytest.fixture(scope="session")
def adapter_of(tmp_path_factory, tokenizer):
    """Writes an adapter of a PEFT config, every trained value moved at random; returns (folder, model with adapter)."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from tunekit.model.artefact import base_facts
    from tunekit.model.save import save_model
    from tunekit.recipe.schema import ModelBlock

    def build(base: Path, config, *, move: float = 0.05, facts: dict | None = None, rows: int | None = None, seed=2):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if rows:
            model.resize_token_embeddings(rows, mean_resizing=False)
        model = get_peft_model(model, config)
        with torch.no_grad():
            for _, value in sorted(model.named_parameters()):
                if value.requires_grad:
                    value.add_(torch.randn_like(value), alpha=move)
        for one in model.peft_config.values():
            one.base_model_name_or_path = str(base)
        folder = tmp_path_factory.mktemp("adapter") / "model"
        known = {"base": base_facts(ModelBlock(name=str(base)), seed=0, dtype="float32")} | (facts or {})
        save_model(model, tokenizer, folder, turn_end=5, facts=known)
        return folder, model.eval()

    return build


@pytest.fixture(scope="session")
def logits():
    """(2, 12, V) logits of a model for fixed ids."""
    import torch

    ids = torch.randint(0, 200, (2, 12), generator=torch.Generator().manual_seed(0))

    def look(model):
        with torch.no_grad():
            return model.eval()(ids).logits

    return look


@pytest.fixture(scope="session")
def rows(tokenizer):
    """Three rows of the embedded world."""
    from tunekit.compress.parity import world_prompts

    found = world_prompts(tokenizer, 3)
    return lambda: found


@pytest.fixture
def here(monkeypatch):
    """Steps and proofs are done in this process: the same work, without the seconds of a new one."""
    import dataclasses

    from tunekit.compress import fresh, parity, worker

    def work(module, job, doing):
        return importlib.import_module(module).work(json.loads(json.dumps(dict(job)))) | {"peak_memory": 1 << 20}

    def measure(adapter, merged, dtype, prompts, *, threads, quantized=False):
        job = {"adapter": str(adapter), "merged": str(merged), "dtype": dtype, "quantized": quantized}
        job |= {"prompts": [dataclasses.asdict(prompt) for prompt in prompts], "threads": threads, "new_tokens": 3}
        return worker.work(job)

    monkeypatch.setattr(fresh, "run", work)
    monkeypatch.setattr(parity, "measure", measure)


@pytest.fixture
def model(tmp_path):
    """A copy of the embedded model, to be spoiled."""
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    return folder
