"""What an artefact's tensors take on the disk, and whether a source's are fit to be rounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tunekit.compress.contract import Weight
from tunekit.compress.stored import headers
from tunekit.core.errors import Problem
from tunekit.model import artefact

PART = 0.1
"""How far the bytes of one matrix may be from the arithmetic; the next type is farther: 4.5 and 5.5 bits, say."""


def stored(folder: Path) -> int:
    """Bytes of all tensors: of the safetensors files, or of the one .gguf file; their heads do not count.

    Raises:
        UserError: there are no weights.
        MachineError: they cannot be read.
    """
    return sum(_tensors(folder).values())


def _tensors(folder: Path) -> dict[str, int]:
    """Bytes of each tensor by its name."""
    files = list(folder.glob("*.gguf"))
    if files:
        import gguf

        return {tensor.name: int(tensor.n_bytes) for path in files for tensor in gguf.GGUFReader(path).tensors}
    return {name: size for name, (_, _, size) in headers(folder).items()}


def by_weight(folder: Path, weights: Sequence[Weight]) -> dict[str, int]:
    """Bytes of all that belongs to each of the source's weights: packed values, scales, zero points, tables.

    A library names these after the weight (``x.weight.absmax``) or its module (``x.weight_scale``, ``x.SCB``), and
    llama.cpp has names of its own. Weights of which nothing bears the name are left out.
    """
    owners: dict[str, str] = {}
    if any(folder.glob("*.gguf")):
        from tunekit.compress.ggml import convert, families

        name_of = convert.names_of(families.config_of(weights[0].model)) if weights else str
        owners = {name: weight.name for weight in weights if (name := name_of(weight.name)) is not None}
    else:
        for weight in weights:
            for name in (weight.name, weight.stored or weight.name):
                owners |= {name.removesuffix(".weight"): weight.name, name: weight.name}
    found: Counter[str] = Counter()
    for name, size in _tensors(folder).items():
        parts = name.split(".")
        above = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        owner = next((owners[part] for part in above if part in owners), None)
        if owner is not None:
            found[owner] += size
    return dict(found)


def odd(kind: str, folder: Path, expected: Sequence[tuple[Weight, float]]) -> Iterator[Problem]:
    """The matrix whose bytes are farthest from its kind's arithmetic, if any is too far: one of many hides in the sum.

    Args:
        kind: for the words.
        folder: of the artefact.
        expected: the source's weights, each with its bytes.
    """
    found = by_weight(folder, [weight for weight, _ in expected])
    off = [
        (max(found[weight.name] / wanted, wanted / found[weight.name]), weight.name, wanted)
        for weight, wanted in expected
        if weight.role in ("linear", "head", "embedding") and wanted > 0 and found.get(weight.name)
    ]
    off = sorted((one for one in off if one[0] > 1 + PART), reverse=True)
    if off:
        _, name, wanted = off[0]
        more = f"; {len(off) - 1} more are off as well" if len(off) > 1 else ""
        yield Problem(f"'{name}' takes {found[name]:,} bytes; as {kind} it comes to {wanted:,.0f}{more}",
                      fix="were layers left out that should not be?")  # fmt: skip


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
