"""The channels inside the feed-forward blocks that matter least are cut out: a smaller intermediate size.

A channel's importance is the sum of the norms of its weights, into it and out of it, times the norm of its activation
over the calibration. Every layer keeps as many, because a config holds one number for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tunekit.compress.contract import Weight
from tunekit.compress.prune.blocks import Blocks
from tunekit.compress.prune.contract import Pruning
from tunekit.compress.prune.layers import Decoder, architecture, faults, matrix
from tunekit.compress.prune.masks import lowest
from tunekit.core.errors import Problem
from tunekit.recipe.schema import Block

if TYPE_CHECKING:
    import torch

CALIBRATED = True
TRAINABLE = True
SIZES = ("intermediate_size", "n_inner", "ffn_dim")
"""What configs call the number of channels."""


class Config(Block):
    """How many channels stay."""

    size: float | None = Field(None, gt=0, lt=1, description="share of the feed-forward channels that stay")


def problems(config: Config, decoder: Decoder) -> list[Problem]:
    """A share that leaves none or all, or feed-forward blocks that are not found."""
    if config.size is None:
        return [Problem("nothing says how many channels shall stay", "--size", "such as --size 0.75")]
    if found := list(faults(decoder)):
        return found
    other, widths = "`--way depth` leaves whole layers out", set()
    for index in range(len(decoder.layers)):
        block = _block(decoder, index)
        if block is None:
            what = f"the feed-forward block of a {architecture(decoder.model)} is not found by its shapes"
            return [Problem(what, f"{decoder.name}.{index}", other)]
        widths.add(_width(decoder, block))
    if len(widths) > 1 or _key(decoder.model.config.get_text_config()) is None:
        what = f"the config of a {architecture(decoder.model)} has no one number of feed-forward channels"
        return [Problem(what, "MODEL", other)]
    (width,) = widths
    if not 0 < _count(width, config.size) < width:
        return [Problem(f"{config.size:g} of {width} channels is {_count(width, config.size)}", "--size",
                        "take a share between, such as 0.75")]  # fmt: skip
    return []


def choose(pruning: Pruning) -> dict[str, Any]:
    """One layer after the other; what goes is silent until it is cut away: nothing is read from it.

    Raises:
        UserError: layers that cannot be run one by one.
        DataError: no rows.
    """
    import torch

    blocks, found = Blocks(pruning.decoder, pruning.rows), []
    for index in range(len(pruning.decoder.layers)):
        block = _block(pruning.decoder, index)
        assert block is not None, index  # `problems` has seen it
        inward, outward = block
        norm = blocks.norms(index)[outward]
        out = matrix(pruning.model.get_submodule(outward))
        width = out.shape[1]
        weights = out.detach().float().norm(dim=0)
        for name in inward:
            rows = matrix(pruning.model.get_submodule(name)).detach().float().norm(dim=1)
            weights = weights + rows.reshape(-1, width).sum(0)  # one tensor may hold two of them, one after the other
        importance = weights * norm
        goes = lowest(importance.reshape(1, -1), 1 - _count(width, pruning.config.size) / width, by_row=True)[0]
        with torch.no_grad():
            out.masked_fill_(goes, 0)
        stays = (~goes).nonzero().flatten().tolist()
        lost = float(importance[goes].sum() / importance.sum())
        found.append({"inward": inward, "outward": outward, "stays": stays, "channels": width, "lost": lost})
        blocks.go_on(index)
    return {"layers": found}


def shrink(pruning: Pruning, chosen: Mapping[str, Any]) -> None:
    """Slices the weights, and writes the new number into the config."""
    import torch

    for layer in chosen["layers"]:
        stays = torch.tensor(layer["stays"], device=pruning.model.device)
        _take(pruning.model.get_submodule(layer["outward"]), stays, inputs=True)
        for name in layer["inward"]:
            module = pruning.model.get_submodule(name)
            times = matrix(module).shape[0] // layer["channels"]
            _take(module, torch.cat([stays + part * layer["channels"] for part in range(times)]), inputs=False)
    text = pruning.model.config.get_text_config()
    key = _key(text)
    assert key is not None, text.model_type
    setattr(text, key, len(chosen["layers"][0]["stays"]))


def kept(chosen: Mapping[str, Any], weight: Weight) -> float:
    """The share of its channels, of a tensor inside the feed-forward blocks."""
    module = f".{weight.name.rpartition('.')[0]}"
    for layer in chosen["layers"]:
        if any(f".{name}".endswith(module) for name in (*layer["inward"], layer["outward"]) if module != "."):
            return len(layer["stays"]) / int(layer["channels"])
    return 1.0


def _key(model: Any) -> str | None:
    """What the config calls the number of channels."""
    return next((name for name in SIZES if isinstance(getattr(model, name, ""), int | None)), None)


def _count(width: int, share: float) -> int:
    """How many stay: a multiple of eight, as matrix units want it, where there was one."""
    count = round(width * share)
    return count // 8 * 8 if width % 8 == 0 and count >= 8 else count


def _block(decoder: Decoder, index: int) -> tuple[list[str], str] | None:
    """The linear layers into a feed-forward block's channels, and the one out of them; None: not told by shapes."""
    attention = [
        f"{name}." for name, part in decoder.model.named_modules() if type(part).__name__.endswith("Attention")
    ]
    linears = {name: module for name, module in sorted(decoder.linears(index).items())
               if not any(name.startswith(start) for start in attention)}  # fmt: skip
    shapes = {name: tuple(matrix(module).shape) for name, module in linears.items()}
    hidden = decoder.model.config.get_text_config().hidden_size
    outward = [name for name, (outputs, inputs) in shapes.items() if outputs == hidden and inputs != hidden]
    if len(outward) != 1:
        return None
    width = shapes[outward[0]][1]
    inward = [name for name, shape in shapes.items() if shape in ((width, hidden), (2 * width, hidden))]
    return (inward, outward[0]) if inward and len(inward) + 1 == len(shapes) else None


def _width(decoder: Decoder, block: tuple[list[str], str]) -> int:
    return int(matrix(decoder.model.get_submodule(block[1])).shape[1])


def _take(module: Any, stays: torch.Tensor, *, inputs: bool) -> None:
    """Leaves a linear layer those of its inputs, or of its outputs."""
    import torch
    from transformers.pytorch_utils import Conv1D

    turned = isinstance(module, Conv1D)
    value = module.weight.detach().index_select(int(inputs) ^ int(turned), stays).contiguous()
    module.weight = torch.nn.Parameter(value, requires_grad=False)
    if module.bias is not None and not inputs:
        module.bias = torch.nn.Parameter(module.bias.detach()[stays], requires_grad=False)
    names = ("nx", "nf") if turned else ("in_features", "out_features")
    setattr(module, names[0] if inputs else names[1], len(stays))
