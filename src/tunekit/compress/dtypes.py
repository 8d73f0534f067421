"""Types of weights: those of the base on the disk, and giving them to a merged model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tunekit.compress.bare import bare_model
from tunekit.compress.stored import TORCH, WIDTHS, headers
from tunekit.core.errors import UserError
from tunekit.model import artefact
from tunekit.model.names import resolve_name
from tunekit.model.restore import Artefact
from tunekit.model.tokenizer import load_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def base_dtype(found: Artefact) -> str:
    """The type that most numbers of the base have on the disk.

    Raises:
        UserError: it is none that can be merged into, or there are no weights.
    """
    assert found.base is not None
    name = resolve_name(found.base.name)
    if name.random:
        return str(found.base_facts.get("dtype") or "float32")
    counts: Counter[str] = Counter()
    for _, stored, shape in _stored(found):
        counts[stored] += math.prod(shape)
    most = counts.most_common(1)[0][0] if counts else "of no"
    if most not in TORCH:
        raise UserError(f"the base's weights are of type {most}", where=found.base.name, fix="name one with --dtype")
    return TORCH[most]


def merged_bytes(found: Artefact, dtype: str | None) -> int:
    """Bytes of the weights that a merge writes: in a type, or in those of the base's files."""
    assert found.base is not None
    if resolve_name(found.base.name).random:
        numbers = sum(int(value.numel()) for value in bare_model(load_config(found.base)).parameters())
        return numbers * WIDTHS.get(dtype or base_dtype(found), 32) // 8
    own = (math.prod(shape) * WIDTHS.get(dtype or TORCH.get(stored, ""), 32) for _, stored, shape in _stored(found))
    return sum(own) // 8


def disk_dtypes(found: Artefact) -> dict[str, str]:
    """The type of each of the base's tensors in its files, by name, of those that can be merged into."""
    return {name: TORCH[stored] for name, stored, _ in _stored(found) if stored in TORCH}


def _stored(found: Artefact) -> Iterator[tuple[str, str, Sequence[int]]]:
    """(name, type, shape) of each tensor in the base's files; none for fresh weights."""
    assert found.base is not None
    name = resolve_name(found.base.name)
    if name.random:
        return
    for key, (stored, shape, _) in headers(artefact.base_folder(name, found.base.revision)).items():
        yield key, stored, shape


def round_weights(model: PreTrainedModel, dtype: str, own: Mapping[str, str]) -> None:
    """Gives the weights their type on the disk, in place.

    Args:
        model: merged, in float32.
        dtype: of the model, and of each tensor that ``own`` does not name.
        own: the type that a tensor has in the base's files, by name: what these keep in float32 stays in it.
    """
    import torch

    prefix = f"{model.base_model_prefix}."
    for name, value in model.state_dict(keep_vars=True).items():
        if value.is_floating_point():
            kept = own.get(name) or own.get(name.removeprefix(prefix), dtype)
            value.data = value.data.to(getattr(torch, kept))
    model.config.dtype = getattr(torch, dtype)
