"""Where the layers of a decoder are, and what in them cannot be pruned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.compress.bare import bare_model
from tunekit.core.errors import Problem, UserError
from tunekit.model.targets import linear_names
from tunekit.model.tokenizer import load_config
from tunekit.recipe.schema import ModelBlock

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Decoder:
    """The decoder's layers.

    Args:
        model: that they are of.
        name: of the list that holds them, such as ``model.layers``.
        layers: the list.
    """

    model: PreTrainedModel
    name: str
    layers: torch.nn.ModuleList

    def linears(self, index: int) -> dict[str, torch.nn.Module]:
        """The linear layers inside one of the decoder's layers, by full name."""
        start = f"{self.name}.{index}."
        return {name: self.model.get_submodule(name) for name in linear_names(self.model) if name.startswith(start)}


def architecture(model: PreTrainedModel) -> str:
    """What the model's architecture is called, such as ``llama``."""
    return str(model.config.get_text_config().model_type)


def find_decoder(model: PreTrainedModel) -> Decoder:
    """The outermost list of as many layers as the config says.

    Raises:
        UserError: there is none, by the architecture's name.
    """
    from torch import nn

    inside, count = linear_names(model), model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        here = isinstance(module, nn.ModuleList) and len(module) == count
        if here and all(any(linear.startswith(f"{name}.{at}.") for linear in inside) for at in range(count)):
            assert isinstance(module, nn.ModuleList)
            return Decoder(model, name, module)
    raise UserError(f"the decoder's layers are not found in a model of the architecture {architecture(model)}",
                    fix="prune a causal language model whose layers lie in one list, such as llama's")  # fmt: skip


def skeleton(folder: Path) -> PreTrainedModel:
    """The model that a folder's config describes, without memory for its numbers.

    Raises:
        UserError: transformers does not know it.
    """
    return bare_model(load_config(ModelBlock(name=str(folder))), str(folder))


def faults(decoder: Decoder) -> Iterator[Problem]:
    """What would be pruned twice, or passed over."""
    yield from _shared(decoder)
    yield from _experts(decoder)


def _shared(decoder: Decoder) -> Iterator[Problem]:
    """One tensor under two names: each of its layers would leave out others of its numbers."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, value in decoder.model.named_parameters(remove_duplicate=False):
        names[id(value)].append(name)
    for same in names.values():
        if len(same) > 1 and any(name.startswith(f"{decoder.name}.") for name in same):
            yield Problem(f"'{same[0]}' and '{same[1]}' are one tensor: what one can do without, the other may need",
                          fix="save the model with weights of their own for each layer")  # fmt: skip


def _experts(decoder: Decoder) -> Iterator[Problem]:
    from torch import nn

    for name, module in decoder.layers[0].named_modules():
        for own, value in module.named_parameters(recurse=False):
            if value.dim() > 2 and not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                full = ".".join(part for part in (decoder.name, "0", name, own) if part)
                yield Problem(f"'{full}' holds all experts of a layer, which are not pruned yet",
                              fix="take a model without experts; `--way depth` leaves whole layers out")  # fmt: skip
                return


def matrix(module: Any) -> torch.Tensor:
    """(outputs, inputs): a linear layer's weight, of GPT-2's class too; a view, to be changed in place."""
    from transformers.pytorch_utils import Conv1D

    found: torch.Tensor = module.weight.T if isinstance(module, Conv1D) else module.weight
    return found
