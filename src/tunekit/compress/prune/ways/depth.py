"""Whole layers that matter least are left out.

By cosine: the block influence of Men et al., ShortGPT, arXiv 2403.03853: one less the mean cosine similarity of what
goes into a layer and what comes out. By perplexity: one layer after the other, that without which the rows' perplexity
is lowest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunekit.compress.contract import Weight
from tunekit.compress.prune.contract import Pruning
from tunekit.compress.prune.layers import Decoder
from tunekit.compress.prune.likelihood import perplexity
from tunekit.core.errors import DataError, Problem
from tunekit.recipe.schema import Block

if TYPE_CHECKING:
    import torch

CALIBRATED = True
TRAINABLE = True
NUMBERED = ("mlp_only_layers",)
"""Keys of configs that name layers by their numbers."""


class Config(Block):
    """How many layers go, and how it is found which."""

    layers: int | None = Field(None, ge=1, description="so many layers go")
    by: Literal["cosine", "perplexity"] = Field("cosine", description="what a layer is judged by")


def problems(config: Config, decoder: Decoder) -> list[Problem]:
    """More layers than there are."""
    if config.layers is None:
        return [Problem("nothing says how many layers shall go", "--layers", "such as --layers 2")]
    there = len(decoder.layers)
    if config.layers >= there:
        return [Problem(f"{config.layers} layers shall go, and the model has {there}", "--layers",
                        f"at most {there - 1}")]  # fmt: skip
    return []


def choose(pruning: Pruning) -> dict[str, Any]:
    """Finds the layers, and lets the rows pass them by until they are cut out.

    Raises:
        DataError: no rows.
    """
    if not any(len(row) > 1 for row in pruning.rows):
        raise DataError("there are no rows to look at", where="--calib", fix="name rows: --calib data.jsonl")
    config = pruning.config
    scores: list[Any] = []
    if config.by == "cosine":
        scores = influences(pruning)
        dropped = sorted(sorted(range(len(scores)), key=scores.__getitem__)[: config.layers])
    else:
        dropped = []
        for _ in range(config.layers):
            found = {at: _without(pruning, (*dropped, at)) for at in _others(pruning, dropped)}
            scores.append(found)
            dropped = sorted((*dropped, min(found, key=found.__getitem__)))
    pruning.until_shrunk.enter_context(_passed(pruning, dropped))
    return {"dropped": dropped, "scores": scores, "list": pruning.decoder.name, "of": len(pruning.decoder.layers)}


def shrink(pruning: Pruning, chosen: Mapping[str, Any]) -> None:
    """Takes the layers out, and what the config says of each."""
    text, of = pruning.model.config.get_text_config(), chosen["of"]
    stays = _others(pruning, chosen["dropped"])
    for index in reversed(chosen["dropped"]):
        del pruning.decoder.layers[index]
    for key, value in text.to_dict().items():
        if key in NUMBERED and isinstance(value, list):
            setattr(text, key, [stays.index(at) for at in value if at in stays])
        elif isinstance(value, list) and len(value) == of:
            setattr(text, key, [value[at] for at in stays])
    if isinstance(getattr(text, "max_window_layers", None), int):
        text.max_window_layers = sum(at < text.max_window_layers for at in stays)
    text.num_hidden_layers = len(stays)


def kept(chosen: Mapping[str, Any], weight: Weight) -> float:
    """Nothing of a tensor inside a layer that goes."""
    last = chosen["list"].rpartition(".")[2]
    found = re.search(rf"(?:^|\.){re.escape(last)}\.(\d+)\.", weight.name)
    return 0.0 if found is not None and int(found[1]) in chosen["dropped"] else 1.0


def influences(pruning: Pruning) -> list[float]:
    """The block influence of each layer: 0 for one that turns no token's vector."""
    import torch
    from torch.nn.functional import cosine_similarity

    sums, tokens = [0.0] * len(pruning.decoder.layers), 0

    def look(index: int, _layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        sums[index] += float(cosine_similarity(before.double(), after.double(), dim=-1).sum())

    with ExitStack() as hooks, torch.no_grad():
        for index, layer in enumerate(pruning.decoder.layers):
            hooks.callback(layer.register_forward_hook(partial(look, index), with_kwargs=True).remove)
        for row in pruning.rows:
            pruning.model(input_ids=torch.tensor([list(row)], device=pruning.model.device), use_cache=False)
            tokens += len(row)
    return [1 - found / tokens for found in sums]


def _without(pruning: Pruning, indices: Iterable[int]) -> float:
    with _passed(pruning, indices):
        return perplexity(pruning.model, pruning.rows)


def _others(pruning: Pruning, indices: Sequence[int]) -> list[int]:
    return [index for index in range(len(pruning.decoder.layers)) if index not in indices]


def _passed(pruning: Pruning, indices: Iterable[int]) -> ExitStack:
    """Until it is closed, what goes into these layers comes out of them."""
    hooks = ExitStack()
    for index in indices:
        layer = pruning.decoder.layers[index]
        hooks.callback(layer.register_forward_hook(_instead, with_kwargs=True).remove)
    return hooks


def _instead(_layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    before: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return (before, *output[1:]) if isinstance(output, tuple) else before
