"""Where in a model the adapters go, told from its structure."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from tunekit.core.errors import UserError
from tunekit.model.bottleneck import Style

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
ATTENTION_END = ("o_proj", "out_proj", "c_proj", "dense", "Wo")
MLP = ("mlp", "feed_forward", "ffn", "mlp_block")
MLP_END = ("down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "w2", "Wo")


def find_places(model: PreTrainedModel, style: Style) -> list[str]:
    """Names of the modules that get an adapter, in the order of the layers.

    An adapter that comes after a block is put on the block's last projection: before its dropout, its norm and its
    residual connection. A mixture of experts has no last projection: its adapter comes after the whole block.

    Raises:
        UserError: a layer of this model has no such place.
    """
    kind = model.config.model_type
    layers = _layers(model)
    if not layers:
        raise _refused(kind, style, "it has no list of layers with an attention and an MLP")
    found = []
    for name, layer in layers.items():
        if style == "houlsby":
            end = _child(layer, ATTENTION, ATTENTION_END)
            if end is None:
                raise _refused(kind, style, f"{name} has no attention whose output is a projection of a known name")
            found.append(f"{name}.{end}")
        mlp = _child(layer, MLP)
        if mlp is None:
            raise _refused(kind, style, f"{name} has no MLP of a known name")
        place = mlp if style == "parallel" else _child(layer, MLP, MLP_END) or mlp
        if place == mlp and _inputs(layer.get_submodule(mlp)) != 1:
            raise _refused(kind, style, f"{name}.{mlp} takes more than the hidden states")
        found.append(f"{name}.{place}")
    return found


def _layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The layers of the language model by their names; a vision tower's are not among them."""
    from torch import nn

    count = model.config.get_text_config(decoder=True).num_hidden_layers
    names = {module: name for name, module in model.named_modules()}
    for root in (model.get_decoder(), model.base_model):  # some models call their head the decoder
        for module in root.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count and _child(module[0], ATTENTION + MLP):
                return {f"{names[module]}.{number}": layer for number, layer in enumerate(module)}
    return {}


def _child(module: nn.Module, *path: tuple[str, ...]) -> str | None:
    """The first child with one of the names, and of it the first child with one of the further names."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    names, *rest = path
    children = dict(module.named_children())
    for name in names:
        if name not in children:
            continue
        below = children[name]
        if not rest:
            return name
        if not isinstance(below, BaseTunerLayer) and (further := _child(below, *rest)) is not None:
            return f"{name}.{further}"
    return None


def _inputs(module: nn.Module) -> int:
    """How many arguments the module's forward pass cannot do without."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(module, BaseTunerLayer):
        return _inputs(module.get_base_layer())
    parameters = inspect.signature(module.forward).parameters.values()
    return sum(each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD for each in parameters)


def _refused(kind: str, style: Style, why: str) -> UserError:
    return UserError(
        f"no bottleneck adapters of style {style} on a model of type '{kind}': {why}",
        where="adapter.kind",
        fix="use another style, or a kind that fits any model, such as lora",
    )
