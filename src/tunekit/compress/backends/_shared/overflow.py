"""Numbers that do not fit into the type that a library rounds by way of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tunekit.compress.backends._shared.given import is_quantized
from tunekit.compress.contract import Weight
from tunekit.core.errors import Problem
from tunekit.model import artefact

FLOAT16 = 65504.0


def too_large(
    folder: Path, weights: Sequence[Weight], skip: Sequence[str], limit: float = FLOAT16
) -> Iterator[Problem]:
    """Tensors to be quantized with numbers beyond a type's range, or none at all; read one by one.

    Args:
        folder: of the source.
        weights: its tensors.
        skip: modules that are not quantized.
        limit: the type's largest number.
    """
    from safetensors import safe_open

    names = {weight.stored: weight.name for weight in weights if is_quantized(weight, skip)}
    for path in artefact.weight_files(folder):
        with safe_open(str(path), "pt") as file:
            for name in sorted(names.keys() & set(file.keys())):
                largest = float(file.get_tensor(name).abs().max())
                if not largest <= limit:
                    module = names[name].removesuffix(".weight")
                    yield Problem(f"the tensor '{name}' has numbers up to {largest:,.0f}; beyond {limit:,.0f} they are "
                                  "infinite while they are rounded", where=str(path),
                                  fix=f"skip: [{module}], or another kind, such as ao_int8")  # fmt: skip
