"""Which weights a run begins with, told from the weights themselves: names, shapes and a sample of every tensor."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLED = 1024
"""Values of each tensor that are looked at, evenly spread: in another revision nearly all of them differ."""


def weights_fingerprint(model: PreTrainedModel, *, frozen_only: bool, whole: bool = False) -> str:
    """Hex sha256 over a sample of the weights.

    Args:
        model: as loaded, with its adapter if any.
        frozen_only: leave out what is trained, such as a fresh adapter.
        whole: every value counts, not a sample, and those of buffers too: about a second a gigabyte.
    """
    import torch

    digest = hashlib.sha256()
    tensors = [*model.named_parameters(), *(model.named_buffers() if whole else ())]
    for name, parameter in sorted(tensors, key=lambda pair: pair[0]):
        if frozen_only and parameter.requires_grad:
            continue
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        flat = parameter.detach().reshape(-1)
        if whole:
            digest.update(flat.to("cpu").contiguous().view(torch.uint8).numpy().data)
            continue
        step = max(1, flat.numel() // SAMPLED)
        digest.update(flat[::step].to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()
