"""What a full or faulty disk raises while a checkpoint is written, in words."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunekit.core.errors import MachineError
from tunekit.train.checkpoint import Damaged
from tunekit.train.disk import full_disk_error


@contextmanager
def explained(staged: Path, needed: int) -> Iterator[None]:
    """Turns what a full or faulty disk raises into words; what was written so far is removed."""
    from safetensors import SafetensorError

    try:
        yield
    except Damaged as why:
        raise MachineError(
            f"the checkpoint that was just written is not what was written: {why}",
            where=str(staged.name),
            fix="the disk or the memory of this machine is at fault; older checkpoints were kept",
        ) from why
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(staged, ignore_errors=True)
        full = full_disk_error(error, staged, needed)
        if full is None:
            raise
        raise full from error
