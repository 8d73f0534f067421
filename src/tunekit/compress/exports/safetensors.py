"""A Hugging Face folder: safetensors in a chosen type and shard size, tokenizer, chat template, generation config."""

from __future__ import annotations

from pathlib import Path

from tunekit.compress.source import Source

KINDS = ("bfloat16", "float16", "float32")


def finish(source: Source, folder: Path) -> None:
    """The folder is whole as it is."""


def use(folder: Path) -> str:
    """How it is loaded."""
    return f"AutoModelForCausalLM.from_pretrained({str(folder)!r})"
