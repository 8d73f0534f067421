"""What is on the disk of a pruned model: its zeros, counted again, and the bytes it should have."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunekit.compress.contract import Weight
from tunekit.core.errors import Problem
from tunekit.model import artefact


def stored_bytes(weight: Weight, config: Mapping[str, Any]) -> float:
    """Of a source's tensor, once it is written whole; a head that is the embedding is not written."""
    if weight.role == "head" and config.get("tie_word_embeddings"):
        return 0.0
    return math.prod(weight.shape) * weight.bits / 8


def faults(folder: Path, tensors: Mapping[str, Mapping[str, int]], group: tuple[int, int] | None) -> Iterator[Problem]:
    """Tensors of the folder that do not have the zeros that were counted when they were made.

    Args:
        folder: of the pruned model.
        tensors: by name: how many ``zeros`` of how many ``values``.
        group: at least so many zeros in so many neighbours along the inputs; None for no pattern.
    """
    from safetensors import safe_open

    there: dict[str, int] = {}
    for path in artefact.weight_files(folder):
        with safe_open(str(path), "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                if name in tensors:
                    zero = file.get_tensor(name) == 0
                    there[name] = int(zero.sum())
                    inputs = zero.T if tensors[name]["turned"] else zero
                    if group is not None and int(inputs.reshape(-1, group[1]).sum(1).min()) < group[0]:
                        yield Problem(
                            f"'{name}' has groups of {group[1]} with fewer than {group[0]} zeros", str(folder)
                        )
    for name, known in tensors.items():
        if there.get(name) != known["zeros"]:
            found = f"{there[name]:,} zeros" if name in there else "no such tensor"
            yield Problem(f"'{name}' shall have {known['zeros']:,} zeros; on the disk there are {found}", str(folder))


def share(tensors: Mapping[str, Mapping[str, int]]) -> float:
    """The zeros among all values of the tensors."""
    return sum(one["zeros"] for one in tensors.values()) / sum(one["values"] for one in tensors.values())
