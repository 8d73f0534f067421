"""Writing a .gguf file, tensor by tensor: never more than one in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.compress.contract import Weight
from tunekit.compress.ggml import families, kinds
from tunekit.compress.ggml.vocabulary import Vocabulary
from tunekit.compress.source import weights_of
from tunekit.core.errors import MachineError, UserError
from tunekit.model import artefact

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PretrainedConfig

SAME = "same"
"""A kind for what llama.cpp quantizes next: every matrix as it lies in the source, so that nothing is rounded twice."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file.

    Args:
        name: in the file.
        type: one of `kinds.BLOCKS`.
        weight: of the source.
        path: file of the source that it lies in.
    """

    name: str
    type: str
    weight: Weight
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor as llama.cpp takes it, slowest dimension first."""
        shape = self.weight.shape
        return shape[::-1] if self.weight.turned else shape


def plan(source: Path, config: PretrainedConfig, kind: str, skip: Sequence[str]) -> list[Tensor]:
    """The tensors of a file, in the source's order.

    Args:
        source: plain folder.
        config: of the model.
        kind: one of `kinds.HELP`, or `SAME`.
        skip: modules left as they are.

    Raises:
        UserError: a tensor has no name in llama.cpp.
    """
    from safetensors import safe_open

    model = json.loads((source / "config.json").read_text(encoding="utf-8"))
    name_of = names_of(config)
    known, found = {weight.stored: weight for weight in weights_of(source)}, []
    for path in artefact.weight_files(source):
        with safe_open(str(path), "pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                weight = Weight(**{**vars(known[key]), "model": model})
                if weight.role == "unused":
                    continue
                name = name_of(weight.name)
                if name is None:
                    raise UserError(f"the tensor '{key}' has no place in llama.cpp's '{config.model_type}'",
                                    where=str(path.name), fix=families.ELSEWHERE)  # fmt: skip
                own = {"F32": "F32", "BF16": "BF16", "F16": "F16"}.get(file.get_slice(key).get_dtype(), "F32")
                found.append(Tensor(name, _type(kind, weight, skip, own), weight, path))
    return found


def names_of(config: PretrainedConfig) -> Callable[[str], str | None]:
    """What gives the name in the file of a tensor of transformers' model; None for one that has no place there."""
    import gguf

    arch = getattr(gguf.MODEL_ARCH, families.family_of(config.model_type).arch)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    return lambda name: names.get_name(name.removeprefix("transformer."), try_suffixes=(".weight", ".bias"))


def _type(kind: str, weight: Weight, skip: Sequence[str], own: str) -> str:
    plain = kinds.type_of("f32" if kind == SAME else kind, weight, skip)
    vector = kinds.type_of("f16", weight) == "F32"
    if vector:
        return "F32"
    return own if kind == SAME or (kind not in kinds.FLOATS and kinds.is_kept(weight, skip)) else plain


def write(
    target: Path, config: PretrainedConfig, tensors: Sequence[Tensor], vocabulary: Vocabulary, file_type: str
) -> None:
    """Writes the file.

    Args:
        target: the .gguf file, which is not there yet.
        config: of the model.
        tensors: as `plan` gives them.
        vocabulary: of its tokenizer.
        file_type: a name in `gguf.LlamaFileType`, which llama.cpp shows.

    Raises:
        UserError: a weight is not a number that its type can hold.
    """
    import gguf
    import numpy as np

    arch = getattr(gguf.MODEL_ARCH, families.family_of(config.model_type).arch)
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[arch])
    _keys(writer, "", {"general.type": "model", "general.file_type": int(gguf.LlamaFileType[file_type]),
                       "general.quantization_version": gguf.GGML_QUANT_VERSION})  # fmt: skip
    _keys(writer, f"{gguf.MODEL_ARCH_NAMES[arch]}.", families.keys_of(config))
    _vocabulary(writer, vocabulary)
    factors = families.rope_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", (len(factors),), np.dtype(np.float32), 4 * len(factors))
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.type]
        shape = gguf.quants.quant_shape_to_byte_shape(tensor.shape, kind)
        raw = None if tensor.type in ("F32", "F16") else kind
        stored = np.dtype({"F32": np.float32, "F16": np.float16}.get(tensor.type, np.uint8))
        shape = tensor.shape if raw is None else shape
        writer.add_tensor_info(tensor.name, shape, stored, int(np.prod(shape)) * stored.itemsize, raw)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(np.asarray(factors, dtype=np.float32))
        for tensor, value in zip(tensors, _values(tensors, config)):
            writer.write_tensor_data(encode(value, tensor.type, tensor.weight.name))
    except OSError as error:
        raise MachineError(f"the file cannot be written: {error}", where=str(target), fix="free disk space") from error
    finally:
        writer.close()


def encode(value: np.ndarray, kind: str, name: str) -> np.ndarray:
    """A float32 matrix in one of the types of `kinds.BLOCKS`, as the package `gguf` rounds it.

    Raises:
        UserError: a value is no number, or is too large for the type.
    """
    import gguf
    import numpy as np

    if not np.isfinite(value).all():
        raise UserError(
            "a weight is not a finite number", where=name, fix="the run diverged: take an earlier checkpoint"
        )
    if kind == "F16" and np.abs(value).max(initial=0) > np.finfo(np.float16).max:
        raise UserError(f"a weight is {np.abs(value).max():.3g}: 16-bit floats end at 65504", where=name,
                        fix="take bf16, which has the range of 32-bit floats")  # fmt: skip
    found: np.ndarray = gguf.quants.quantize(value, gguf.GGMLQuantizationType[kind])
    return found


def _values(tensors: Sequence[Tensor], config: PretrainedConfig) -> Iterator[np.ndarray]:
    """Each tensor in float32, as llama.cpp's graph takes it."""
    from safetensors import safe_open

    for tensor in tensors:
        with safe_open(str(tensor.path), "pt") as file:
            value: torch.Tensor = file.get_tensor(tensor.weight.stored)
        if tensor.weight.turned:
            value = value.T
        yield families.arrange(tensor.weight.name, value, config).float().contiguous().numpy()


def _keys(writer: Any, prefix: str, keys: Mapping[str, Any]) -> None:
    for key, value in keys.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
               list: writer.add_array}[type(value)]  # fmt: skip
        add(prefix + key, value)


def _vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    found = {"model": vocabulary.model, "pre": vocabulary.pre, "tokens": vocabulary.tokens}
    lists = {"token_type": vocabulary.types, "scores": vocabulary.scores, "merges": vocabulary.merges}
    _keys(writer, "tokenizer.ggml.", found | {key: value for key, value in lists.items() if value})
    _keys(writer, "tokenizer.ggml.", vocabulary.keys)
    if vocabulary.template is not None:
        _keys(writer, "tokenizer.", {"chat_template": vocabulary.template})
