"""What an artefact's tensors take on the disk, and whether a source's are fit to be rounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tunekit.compress.source import headers
from tunekit.core.errors import Problem
from tunekit.model import artefact


def stored(folder: Path) -> int:
    """Bytes of all tensors: of the safetensors files, or of the one .gguf file; their heads do not count.

    Raises:
        UserError: there are no weights.
        MachineError: they cannot be read.
    """
    files = list(folder.glob("*.gguf"))
    if files:
        import gguf

        return sum(int(tensor.n_bytes) for path in files for tensor in gguf.GGUFReader(path).tensors)
    return sum(size for _, _, size in headers(folder).values())


def faulty(folder: Path) -> Iterator[Problem]:
    """Tensors with numbers that are not finite, read one by one; rounding would spread them over their neighbours."""
    import torch
    from safetensors import safe_open

    for path in artefact.weight_files(folder):
        with safe_open(str(path), "pt") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                if not tensor.is_floating_point():
                    continue
                finite = torch.isfinite(tensor.float() if tensor.itemsize == 1 else tensor)  # none for floats of 8 bits
                if not bool(finite.all()):
                    count = int((~finite).sum())
                    yield Problem(f"the tensor '{name}' has {count:,} numbers that are not finite", where=str(path),
                                  fix="was the training sound? take the model from before it went wrong")  # fmt: skip
