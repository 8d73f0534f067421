"""Free space: how much a run will write, whether there is room for it, and whether a failed write was a full disk."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tunekit.core.errors import MachineError
from tunekit.plan.plan import Plan

if TYPE_CHECKING:
    from torch import nn

SMALL_FILES = 1_000_000
"""Bytes of a checkpoint's configuration, tokenizer, scheduler, random states and manifest."""
SLACK = 1.1
SHARD = 50_000_000_000
"""Bytes at which save_pretrained begins another file of weights."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NUMBER = re.compile(r"\(os error (\d+)\)")
_WRITER_WORDS = ("unexpected pos", "enforce fail at inline_container", "iostream error")
_MORE_SPACE = "free space, keep fewer checkpoints (train.keep_checkpoints), or name another folder (output.dir)"
_HIGHER_LIMIT = "raise the limit of file sizes (`ulimit -f unlimited`)"


def optimizer_bytes(model: nn.Module, optimizer: str) -> int:
    """Bytes of an optimizer's states for the trainable parameters of a model.

    adamw: two of the parameter's type, and a step of float32 (torch.optim.AdamW); muon: one for the matrices, AdamW's
    for the others (torch.optim.Muon); sgd: none without momentum; adafactor: a row and a column of float32, or a
    whole vector, and a number (transformers.optimization.Adafactor); those of 8 bits: a byte a state, and a float32
    for each 256 elements, but float32 for tensors below 4096 elements (bitsandbytes.optim.optimizer).
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    once: set[int] = set()
    if optimizer == "muon":
        from tunekit.train.muon import muon_for

        groups = muon_for(model, lr=0.0, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8).muon.param_groups  # type: ignore[arg-type]
        once = {id(parameter) for group in groups for parameter in group["params"]}
    total = 0
    for parameter in trainable:
        count, width = parameter.numel(), parameter.element_size()
        if optimizer.endswith("8bit"):
            states = 1 if optimizer.startswith("lion") else 2
            total += states * (4 * count if count < 4096 else count + 4 * -(-count // 256))
        elif optimizer == "adafactor":
            *rest, last = parameter.shape or (1,)
            total += 4 + 4 * (count // last + count // rest[-1] if rest else count)
        elif optimizer in ("adamw", "muon"):
            total += count * width if id(parameter) in once else 2 * count * width + 4
    return total


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the saved weights: the trainable ones with an adapter, else all; tied ones count once."""
    from peft import PeftModel

    adapter = isinstance(model, PeftModel)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad or not adapter]
    kept = parameters if adapter else [*parameters, *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def checkpoint_bytes(model: nn.Module, plan: Plan) -> int:
    """Estimated bytes of one checkpoint: weights (of an adapter twice), the optimizer's states, small files."""
    from peft import PeftModel

    trained = weight_bytes(model) if isinstance(model, PeftModel) else 0
    return weight_bytes(model) + trained + optimizer_bytes(model, plan.recipe.train.optimizer) + SMALL_FILES


def largest_file_bytes(model: nn.Module, plan: Plan) -> int:
    """Estimated bytes of the largest file that a run writes."""
    states = optimizer_bytes(model, plan.recipe.train.optimizer) if _saves(plan) else 0
    return max(min(weight_bytes(model), SHARD), states)


def needed_bytes(model: nn.Module, plan: Plan, existing: int = 0) -> int:
    """Estimated bytes that a run still writes: the kept checkpoints, one being written, the best, and the model.

    Args:
        model: with its adapter, if any.
        plan: the resolved plan.
        existing: bytes of checkpoints that lie there already and will be rotated away.
    """
    count = plan.recipe.train.keep_checkpoints + 1 + plan.recipe.train.keep_best if _saves(plan) else 0
    total = count * checkpoint_bytes(model, plan) + weight_bytes(model) + SMALL_FILES
    return max(0, int(total * SLACK) - existing)


def _saves(plan: Plan) -> bool:
    return plan.recipe.train.save_every != "never"


def require_space(folder: Path, needed: int, what: str, *, largest: int = 0) -> None:
    """Looks whether ``needed`` bytes can be written under ``folder``, which need not exist yet.

    Args:
        folder: where will be written.
        needed: bytes in all.
        what: what they are for.
        largest: bytes of the largest single file, held against the limit of file sizes (``ulimit -f``).

    Raises:
        MachineError: there is less.
    """
    limit = _file_limit()
    if limit is not None and limit < largest:
        raise MachineError(
            f"no room for {what}: a file of {plain_size(largest)} needed, files may have {plain_size(limit)}",
            where=str(folder),
            fix=_HIGHER_LIMIT,
        )
    if (free := free_bytes(folder)) < needed:
        raise MachineError(
            f"no room for {what}: {plain_size(needed)} needed, {plain_size(free)} free",
            where=str(folder),
            fix=_MORE_SPACE,
        )


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write to the disk of ``folder`` or of its nearest parent that exists."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def _file_limit() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if soft == resource.RLIM_INFINITY else soft


def plain_size(count: int) -> str:
    """``1.2 GB (1,234,567,890 bytes)``."""
    for unit, width in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= width:
            return f"{count / width:.1f} {unit} ({count:,} bytes)"
    return f"{count} bytes"


def full_disk_error(error: BaseException, folder: Path, needed: int) -> MachineError | None:
    """The error to show when a failed write was a full disk, a quota or a limit of file sizes; else None.

    Args:
        error: what the write raised; those that it was raised from are looked at too.
        folder: where was written.
        needed: bytes that were to be written.
    """
    limit, free = _file_limit(), free_bytes(folder)
    causes = list(_chain(error))
    cut_short = any(_is_writer(each) for each in causes) and (free < needed or limit is not None)
    full = any(_says(each, *_FULL) for each in causes)
    if not full and not cut_short and not any(_says(each, errno.EFBIG) for each in causes):
        return None
    numbers = f"needed {plain_size(needed)}, free {plain_size(free)}"
    if full or limit is None or (free < needed and cut_short):
        return MachineError(f"the disk is full: {numbers}", where=str(folder), fix=_MORE_SPACE)
    what = f"the limit of file sizes ({plain_size(limit)}) is reached: {numbers}"
    return MachineError(what, where=str(folder), fix=_HIGHER_LIMIT)


def _says(error: BaseException, *numbers: int) -> bool:
    """Whether an error carries one of these error numbers, as OSError does, or safetensors in its text."""
    if isinstance(error, OSError):
        return error.errno in numbers
    from safetensors import SafetensorError

    found = _NUMBER.search(str(error)) if isinstance(error, SafetensorError) else None
    return found is not None and int(found[1]) in numbers


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [other for other in (each.__cause__, each.__context__) if other is not None]


def _is_writer(error: BaseException) -> bool:
    """torch.save's writer knows only that less was written than it meant to."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WRITER_WORDS)
