"""GGUF, the one file that llama.cpp and what is built on it read (Ollama, LM Studio): 2 to 16 bits, on a CPU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from tunekit.compress.contract import LLAMA_CPP, Making, Weight
from tunekit.compress.ggml import check, convert, families, kinds, library
from tunekit.compress.ggml.vocabulary import vocabulary_of
from tunekit.compress.skipping import skip_problems
from tunekit.core.errors import Problem, UserError
from tunekit.data.fit import turn_end
from tunekit.exam.rows import fitter_of
from tunekit.model.quiet import hushed
from tunekit.model.tokenizer import load_tokenizer
from tunekit.recipe.schema import Block, ModelBlock

KINDS = kinds.HELP
CALIBRATED: frozenset[str] = frozenset()
EXACT = frozenset(kinds.FLOATS)
PACKAGES = {
    "gguf": "pip install 'gguf>=0.19'",
    "llama_cpp": "pip install 'llama-cpp-python>=0.3.36'",
}
DEVICES = dict.fromkeys(KINDS, ("cpu",))
RUNTIME = LLAMA_CPP


class Config(Block):
    """Options of a .gguf file."""

    skip: tuple[str, ...] = Field((), description="layers left as they are: mlp.down_proj, layers.0")


def problems(kind: str, config: Config, model: Mapping[str, Any], weights: Sequence[Weight]) -> list[Problem]:
    """What stands against it: the model's family, what its graph in llama.cpp lacks, names in ``skip``."""
    try:
        read = families.config_of(model)
    except UserError as error:
        return list(error.problems)
    return [*families.problems(read), *skip_problems(config.skip, weights)]


def bits(kind: str, config: Config, weight: Weight) -> float:
    """Bits on the disk for one value of a tensor, scales counted.

    Derived from llama.cpp's own rules (`kinds`), which need the model's number of layers for a k-quant.
    """
    return kinds.bits_of(kinds.type_of(kind, weight, config.skip))


def make(making: Making) -> None:
    """Writes ``model-<kind>.gguf``, and compares its tokens with the tokenizer's.

    Raises:
        UserError: the model or its tokenizer has no equal in llama.cpp, or a weight is too large for the type.
        MachineError: llama.cpp failed, or the disk is full.
    """
    import torch

    source, kind = making.source, making.kind
    config = families.config_of(json.loads((source / "config.json").read_text(encoding="utf-8")))
    tokenizer = load_tokenizer(ModelBlock(name=str(source)))
    with hushed():
        stops = _stops(making, tokenizer)
        vocabulary = vocabulary_of(tokenizer, config.vocab_size, stops)
    name, path = f"MOSTLY_{kind.upper()}" if kind != "f32" else "ALL_F32", making.target / f"model-{kind}.gguf"
    if kind in kinds.MIXES:
        staged = making.target / "staged.gguf"
        tensors = convert.plan(source, config, convert.SAME, making.config.skip)
        kept = {t.name: t.type for t in tensors if kinds.is_kept(t.weight, making.config.skip)}
        try:
            convert.write(staged, config, tensors, vocabulary, "MOSTLY_F16")
            library.quantize(staged, path, name, kept, torch.get_num_threads())
        finally:
            staged.unlink(missing_ok=True)
    else:
        convert.write(path, config, convert.plan(source, config, kind, making.config.skip), vocabulary, name)
    with hushed():
        check.check(path, tokenizer, stops, led=vocabulary.led)


def _stops(making: Making, tokenizer: Any) -> list[int]:
    """Ids that end an answer: what ends a turn in the chat template first, then the generation config's, then EOS."""
    path = making.source / "generation_config.json"
    own = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.exists() else None
    found = [turn_end(fitter_of(tokenizer)), *(own if isinstance(own, list) else [own]), tokenizer.eos_token_id]
    return [index for index in dict.fromkeys(found) if index is not None]
