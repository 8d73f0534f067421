"""llama.cpp's own quantizer, through llama-cpp-python."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

from tunekit.core.errors import MachineError
from tunekit.evaluate.gguf_file import last_word, quieted


def quantize(source: Path, target: Path, kind: str, kept: Mapping[str, str], threads: int) -> None:
    """llama.cpp's own quantizer.

    Args:
        source: a .gguf file of floats.
        target: the file to write.
        kind: a name in `gguf.LlamaFileType`.
        kept: names of tensors in the file, and the types that they are given whatever the mix says.
        threads: to work with.

    Raises:
        MachineError: it failed; with what it said last.
    """
    import gguf

    cpp, said = quieted()
    settings = cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = int(gguf.LlamaFileType[kind]), threads
    rules = (cpp.llama_model_tensor_override * (len(kept) + 1))()  # ends with one of nulls
    for rule, (name, stored) in zip(rules, kept.items()):
        rule.pattern = f"^{name}$".replace(".", "[.]").encode()
        rule.type = int(gguf.GGMLQuantizationType[stored])
    if kept:
        settings.tt_overrides = rules
    if cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(settings)) != 0:
        raise MachineError(
            f"llama.cpp's quantizer failed: {last_word(said)}", where=str(target), fix="free disk and memory"
        )
