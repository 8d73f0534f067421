"""Tensors as they lie in safetensors files, from the heads of the files: names, types, shapes, bytes."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from tunekit.core.errors import MachineError
from tunekit.model import artefact

BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8,
        "F8_E4M3": 8, "F8_E5M2": 8}  # fmt: skip
"""Bits of a value by safetensors' names of types."""
TORCH = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""torch's names of the types that models are computed in, by safetensors' names."""
WIDTHS = {name: BITS[stored] for stored, name in TORCH.items()}
"""Bits of a number, by torch's names of these types."""

Head = dict[str, tuple[str, tuple[int, ...], int]]


def headers(folder: Path) -> Head:
    """Of every tensor that is loaded from a folder: (safetensors' name of its type, shape, bytes).

    Raises:
        UserError: there are no weights.
        MachineError: a file's head cannot be read, or the file is shorter than it says.
    """
    found: Head = {}
    for path in artefact.weight_files(folder):
        found |= head_of(path)
    return found


def head_of(path: Path) -> Head:
    """The same of one file.

    Raises:
        MachineError: its head cannot be read, or it is shorter than that says.
    """
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            head = json.loads(file.read(min(size, path.stat().st_size)))
        found: Head = {
            key: (value["dtype"], tuple(value["shape"]), value["data_offsets"][1] - value["data_offsets"][0])
            for key, value in head.items()
            if key != "__metadata__"
        }
        whole = 8 + size + max((v["data_offsets"][1] for k, v in head.items() if k != "__metadata__"), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise MachineError("the file of weights cannot be read", where=str(path), fix="save it again") from error
    if path.stat().st_size != whole:
        raise MachineError(f"the file has {path.stat().st_size:,} bytes; its head says {whole:,}", where=str(path),
                           fix="save it again")  # fmt: skip
    return found


def dtypes(folder: Path) -> dict[str, str]:
    """torch's names of the types of a folder's tensors, by name, of those that models are computed in.

    Raises:
        UserError, MachineError: as `headers`.
    """
    return {name: TORCH[stored] for name, (stored, _, _) in headers(folder).items() if stored in TORCH}
