"""The model that a backend is given: what of it a library would pass over, and what it leaves as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunekit.compress.bare import bare_model
from tunekit.compress.contract import Weight
from tunekit.compress.skipping import is_skipped, skip_problems
from tunekit.compress.stored import WIDTHS
from tunekit.core.errors import Problem

if TYPE_CHECKING:
    import torch


def experts_of(model: Mapping[str, Any]) -> list[str]:
    """Names of tensors that hold all experts of a layer, (experts, ...), of a config.json's content.

    The model is built without memory.

    Raises:
        UserError: transformers does not know the model.
    """
    import torch
    from transformers import AutoConfig

    values = copy.deepcopy(dict(model))
    skeleton = bare_model(AutoConfig.for_model(values.pop("model_type"), **values))
    kernels = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    return [
        f"{name}.{key}".strip(".")
        for name, module in skeleton.named_modules()
        if not isinstance(module, kernels)
        for key, value in module.named_parameters(recurse=False)
        if value.dim() > 2
    ]


def common_problems(
    kind: str, config: Any, model: Mapping[str, Any], weights: Sequence[Weight], *, own: frozenset[str], turned: bool
) -> Iterator[Problem]:
    """What stands against a kind whatever its numbers are.

    Args:
        kind: that is asked for.
        config: its options, among them ``skip``.
        model: the content of the source's config.json.
        weights: its tensors.
        own: the options that belong to this kind.
        turned: whether the library quantizes layers whose weights lie (inputs, outputs).
    """
    yield from skip_problems(config.skip, weights)
    for name in sorted(config.model_fields_set - own - {"skip"}):
        known = f"it takes {', '.join(sorted(own))}" if own else "it has none of its own"
        yield Problem(f"'{name}' is no option of {kind}", f"to.{name}", f"leave it out: {known}, and skip")
    if model.get("quantization_config") is not None:
        yield Problem("the weights are quantized already", "model", "name the model that they were quantized from")
        return
    if experts := experts_of(model):
        yield Problem(f"{kind} would pass over the experts ('{experts[0]}' holds all of a layer)", "model",
                      "take a model without experts, or leave this one at 16 bits: --to bfloat16")  # fmt: skip
    lying = [weight.name.removesuffix(".weight") for weight in weights if weight.turned]
    if lying and not turned:
        yield Problem(f"{kind} would pass over layers as GPT-2's ('{lying[0]}': its weights lie turned)",
                      "model", "take nf4 or int8, which quantize them")  # fmt: skip
    elif not any(is_quantized(weight, config.skip) for weight in weights):
        yield Problem("no linear layer is left to be quantized", "to.skip", "skip fewer of them")


def is_quantized(weight: Weight, skip: Sequence[str]) -> bool:
    """Whether a tensor is of a linear layer inside the model that is not skipped."""
    return weight.role == "linear" and not is_skipped(weight.name, skip)


def kept_bits(weight: Weight) -> float:
    """Bits on the disk for one value of a tensor that is not quantized.

    transformers loads it in the type that config.json names.
    """
    return WIDTHS.get(str(weight.model.get("dtype") or weight.model.get("torch_dtype")), weight.bits)


def left_alone(model: torch.nn.Module, skip: Sequence[str]) -> list[str]:
    """Full names of a loaded model's linear layers that stay as they are: the head, and those that are skipped."""
    import torch

    outer = getattr(model, "get_output_embeddings", lambda: None)()
    return sorted(
        name
        for name, module in model.named_modules()
        if module is outer or (isinstance(module, torch.nn.Linear) and is_skipped(name, skip))
    )
