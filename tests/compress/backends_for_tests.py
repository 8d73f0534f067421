"""What every backend is held to: made from a folder, weighed against its arithmetic, read back as users read it."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from tunekit.compress import sizes
from tunekit.compress.contract import Making
from tunekit.compress.source import weights_of
from tunekit.model.names import resolve_name
from tunekit.model.quiet import hushed

TINY = Path(resolve_name("builtin:tiny").location)


def model_of(source: Path) -> dict:
    return json.loads((source / "config.json").read_text(encoding="utf-8"))


def weights(source: Path) -> list:
    """With the config that the lead puts into each."""
    return [replace(weight, model=model_of(source)) for weight in weights_of(source)]


def problems(backend: ModuleType, kind: str, source: Path = TINY, **options) -> list:
    return backend.problems(kind, backend.Config(**options), model_of(source), weights(source))


def make(backend: ModuleType, kind: str, target: Path, source: Path = TINY, rows=(), **options) -> tuple[float, int]:
    """Makes an artefact; returns bytes by the arithmetic and bytes found."""
    config = backend.Config(**options)
    assert problems(backend, kind, source, **options) == []
    target.mkdir(parents=True, exist_ok=True)
    with hushed():
        backend.make(Making(kind, config, source, target, tuple(map(tuple, rows)), 0))
    wanted = sum(backend.bits(kind, config, w) * math.prod(w.shape) / 8 for w in weights(source))
    return wanted, sizes.stored(target)


def load(folder: Path, **options):
    """As users load it."""
    from transformers import AutoModelForCausalLM

    with hushed():
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **options).eval()


def logits(model, ids=range(5, 60)):
    """(1, T, V) of fixed ids."""
    import torch

    with torch.no_grad(), hushed():
        return model(torch.tensor([list(ids)])).logits


def stored_types(folder: Path) -> dict[str, str]:
    """safetensors' names of types by tensor."""
    from tunekit.compress.stored import headers

    return {name: value[0] for name, value in headers(folder).items()}


def base(folder: Path, architecture: str, change=None, **sizes_of_it) -> Path:
    """A model of random weights on the disk."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(3)
    common = {"vocab_size": 256, "bos_token_id": 0, "eos_token_id": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **common | sizes_of_it))
    if change is not None:
        with torch.no_grad():
            change(model)
    with hushed():
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return folder


def backend(name: str) -> ModuleType:
    return importlib.import_module(f"tunekit.compress.backends.{name}")


SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 128, "pad_token_id": 0}  # fmt: skip
GPT2 = {"n_layer": 2, "n_embd": 64, "n_head": 2, "n_positions": 128}
