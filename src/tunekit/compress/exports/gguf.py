"""One .gguf file for llama.cpp and what is built on it, with tokenizer, chat template and stop tokens inside."""

from __future__ import annotations

import shlex
from pathlib import Path

from tunekit.compress.source import Source

KINDS = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")


def finish(source: Source, folder: Path) -> None:
    """The file is whole as it is."""


def use(folder: Path) -> str:
    """How it is served."""
    return shlex.join(["llama-server", "-m", str(next(folder.glob("*.gguf"), folder / "model.gguf")), "--jinja"])
