"""Where the layers of a decoder model are, by what they are; names decide only where layers look alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import UserError
from tunekit.model.targets import linear_names, resolve_targets

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_KEY_OR_VALUE = re.compile(r"(k|v|kv|key|value)(_?(proj|lin|layer|linear))?(_[ab])?")


def widths(module: Any) -> tuple[int, int]:
    """Input and output width of a linear layer of whatever class, GPT-2's too.

    Raises:
        AttributeError: it is no linear layer.
    """
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)
    return int(module.nx), int(module.nf)


def target_widths(model: PreTrainedModel, targets: str | Iterable[str]) -> Iterator[tuple[str, int, int]]:
    """Name, input and output width of each linear layer among the targets."""
    for name in resolve_targets(model, targets):
        yield name, *widths(model.get_submodule(name))


def check_blocks(model: PreTrainedModel, targets: str | Iterable[str], size: int) -> None:
    """Refuses blocks that do not fill the inputs of the targets.

    Raises:
        UserError: with the first such layer.
    """
    for name, taken, _ in target_widths(model, targets):
        if taken % size:
            raise UserError(
                f"blocks of {size} do not fill the input of '{name}', which has {taken}",
                where="adapter.block_size",
                fix="take a number that divides it",
            )


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The longest list of layers that hold linear ones, with its name.

    Raises:
        UserError: there is none.
    """
    from torch import nn

    inside = linear_names(model)
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and any(linear.startswith(f"{name}.") for linear in inside)
    ]
    if not lists:
        raise UserError(f"no list of layers is found in {architecture(model)}", where="adapter", fix="name modules")
    return max(lists, key=lambda each: len(each[1]))


def keys_and_values(model: PreTrainedModel) -> list[str]:
    """Full names of the linear layers that make attention's keys and values; one that makes queries too counts.

    Raises:
        UserError: there are none.
    """
    linear = resolve_targets(model, "attention")
    named = [name for name in linear if _KEY_OR_VALUE.fullmatch(name.rsplit(".", 1)[-1])]
    # without such names: one layer makes all three, and its output is wider than its input
    found = named or [
        name for name in linear if widths(model.get_submodule(name))[1] > widths(model.get_submodule(name))[0]
    ]
    if not found:
        raise UserError(
            f"the layers of keys and values are not found in {architecture(model)}",
            where="adapter.targets",
            fix="name modules",
        )
    return found


def feedforward_outputs(model: PreTrainedModel) -> list[str]:
    """Full names of the last linear layer of each feed-forward block: back to the width of the model."""
    hidden = model.config.get_text_config().hidden_size
    last: dict[str, str] = {}
    attention = set(resolve_targets(model, "attention"))
    layers, _ = decoder_layers(model)
    for name in linear_names(model):
        if name.startswith(f"{layers}.") and name not in attention and widths(model.get_submodule(name))[1] == hidden:
            last[name.rpartition(".")[0]] = name
    return sorted(last.values())


def norms(model: PreTrainedModel) -> list[str]:
    """Full names of the normalization layers that have weights.

    Raises:
        UserError: there are none.
    """
    found = [
        name
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and getattr(module, "weight", None) is not None
    ]
    if not found:
        raise UserError(f"{architecture(model)} has no normalization layers with weights", where="adapter.kind")
    return found


def name_of(model: PreTrainedModel, wanted: nn.Module) -> str:
    """The full name of one of the model's modules."""
    names: list[str] = [name for name, module in model.named_modules() if module is wanted]
    return names[0]


def expression(names: Iterable[str]) -> str:
    """A regular expression that fits these full names, and the same places in other layers."""
    return "|".join(sorted({re.sub(r"\\?\.\d+(?=\\?\.)", r"\\.\\d+", re.escape(name)) for name in names}))


def architecture(model: PreTrainedModel) -> str:
    """What the model's architecture is called, such as ``gpt2``."""
    return str(model.config.get_text_config().model_type)


def refuse_conv1d(
    model: PreTrainedModel, kind: str, targets: str | Iterable[str], fix: str = "take lora, vera, ia3 or fourierft"
) -> None:
    """Refuses targets of GPT-2's class of linear layers, which some of PEFT's kinds have no form for.

    Raises:
        UserError: with the architecture's name.
    """
    from transformers.pytorch_utils import Conv1D

    for name in resolve_targets(model, targets):
        if isinstance(model.get_submodule(name), Conv1D):
            raise UserError(
                f"an adapter of kind {kind} has no form for the Conv1D layers of {architecture(model)}, such as {name}",
                where="adapter.kind",
                fix=fix,
            )
