"""Quantized weights: how they are loaded, made ready for adapters, and weighed."""

from __future__ import annotations

import copy
import ctypes
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import MachineError, UserError, raise_all
from tunekit.core.registry import QUANTIZERS
from tunekit.model.quantizers._shared.wishes import kept, stored_as
from tunekit.model.quantizers._shared.wishes import missing_packages as missing_packages
from tunekit.model.quantizers._shared.wishes import problems as problems

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


def quantized_of(config: PretrainedConfig) -> str | None:
    """What weights on disk are quantized as, such as `bnb 4-bit`; None where they are not."""
    stored = stored_as(config)
    return stored.name if stored else None


def is_quantized(model: PreTrainedModel) -> str | None:
    """What a loaded model's weights are quantized as, such as `bnb 4-bit`; None where they are not, or no longer."""
    return quantized_of(model.config)


def kind_of(block: Any, config: PretrainedConfig) -> str | None:
    """The kind of quantization that a model is trained with: the recipe's, or that of the weights on disk."""
    stored = stored_as(config)
    return block.kind if block is not None else stored.kind if stored else None


def load_options(block: Any, compute: torch.dtype, device: str, config: PretrainedConfig) -> dict[str, Any]:
    """Arguments of transformers' `from_pretrained` for quantized weights; none where they are not and shall not be.

    Args:
        block: `model.quantize`, or None.
        compute: the type in which the run multiplies.
        device: ``cpu``, ``cuda`` (this process's own) or ``cuda:N``, where the weights shall lie.
        config: the model's configuration as it lies on disk.

    Raises:
        UserError: what `problems` tells.
        MachineError: a package is missing.
    """
    place, _, index = device.partition(":")
    raise_all(UserError, problems(block, config, place))
    kind = kind_of(block, config)
    if kind is None:
        return {}
    plugin, stored = QUANTIZERS.load(kind), stored_as(config)
    if place in plugin.DEVICES:  # elsewhere transformers unpacks what lies on disk
        raise_all(MachineError, missing_packages(kind))
    local = int(index or os.environ.get("LOCAL_RANK", "0"))
    options: dict[str, Any] = {"device_map": {"": "cpu" if place == "cpu" else local}}
    if stored is None or not plugin.FROM_FULL:
        block = block or plugin.Config(kind=kind)
        options["quantization_config"] = plugin.quantization_config(block, compute, kept(block, config)[0])
    elif kind == "bnb" and stored.facts["bits"] == 4:
        wanted = getattr(block, "compute_dtype", "auto")
        options["config"] = changed = copy.deepcopy(config)
        changed.quantization_config["bnb_4bit_compute_dtype"] = (
            str(compute).removeprefix("torch.") if wanted == "auto" else wanted
        )
    return options


def prepare(model: PreTrainedModel, *, checkpointing: bool) -> None:
    """Makes a quantized model ready for an adapter: frozen, its norms in float32, gradients safe from evaluations.

    Head and embeddings stay in their type: a copy in float32 would double what is often most of a small model.

    Args:
        model: as loaded, without an adapter.
        checkpointing: activations are recomputed; then the inputs of the layers need gradients, because reentrant
            checkpointing gives none to a layer none of whose inputs has one.
    """
    # at each evaluation, for each layer of 8 bits, one line: that it rounds its input
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    keep_unpacked(model)
    _give_back(model)
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and "Norm" in type(module).__name__ and all(parameter.is_floating_point() for parameter in own):
            _in_float32(module, own)
    if checkpointing:
        model.enable_input_require_grads()


def keep_unpacked(model: PreTrainedModel) -> None:
    """Keeps bitsandbytes from packing 4-bit weights anew at the first evaluation on a CPU with AVX512-BF16.

    The packed weights are never unpacked, and multiplied without a backward pass: training goes on with parts of its
    gradients missing, and what is merged or saved is garbage. Costs time where single tokens are generated on a CPU.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _give_back(model: PreTrainedModel) -> None:
    """Gives back the memory in which the weights lay before they were quantized.

    What was not quantized (tables, norms) may still lie in the mapped file, which keeps the whole of it resident; and
    the C library keeps the buffers that it freed, about as much again.
    """
    import torch

    for parameter in model.parameters():
        if type(parameter) is torch.nn.Parameter and parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):  # glibc's
        library.malloc_trim(0)


def _in_float32(norm: torch.nn.Module, own: list[torch.nn.Parameter]) -> None:
    """A norm computes in float32 from now on, and returns what it returned: the layer after it need not know."""
    import torch

    dtype = own[0].dtype
    if dtype == torch.float32:
        return
    for parameter in own:
        parameter.data = parameter.data.float()
    norm.register_forward_pre_hook(_inputs_in_float32, with_kwargs=True)
    norm.register_forward_hook(partial(_output_in, dtype))


def _inputs_in_float32(_: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    import torch

    def wide(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return tuple(map(wide, args)), {key: wide(value) for key, value in kwargs.items()}


def _output_in(dtype: torch.dtype, _: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    return output.to(dtype)


def weights_bytes(model: torch.nn.Module) -> int:
    """Bytes in which a model's weights lie: quantized values, their scales, and all that is not quantized.

    A storage that several tensors share (tied embeddings) counts once.
    """
    return sum({part.data_ptr(): part.nbytes() for part in _storages(model)}.values())


def _storages(model: torch.nn.Module) -> Iterator[torch.UntypedStorage]:
    for tensor in (*model.parameters(), *model.buffers()):
        yield from _parts(tensor)
        state = getattr(tensor, "quant_state", None)  # bitsandbytes, 4 bits
        while state is not None:
            for part in (state.absmax, state.code, state.offset):
                yield from _parts(part)
            state = state.state2
        yield from _parts(getattr(tensor, "SCB", None))  # bitsandbytes, 8 bits
    for module in model.modules():  # where the scales of 8 bits go at the first forward pass
        yield from _parts(getattr(getattr(module, "state", None), "SCB", None))


def _parts(tensor: Any) -> Iterator[torch.UntypedStorage]:
    """The storages of a tensor; of a subclass that holds several tensors (torchao), those of each."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _parts(getattr(tensor, name))
    elif tensor is not None:
        yield tensor.untyped_storage()
