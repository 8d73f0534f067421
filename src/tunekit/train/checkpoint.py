"""Checkpoints appear under their name only when they are complete: staged, flushed, listed in a manifest, renamed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from tunekit.core.files import sha256_file, write_json

MANIFEST = "MANIFEST.json"


def put_in_place(staged: Path, folder: Path, step: int, facts: dict[str, Any]) -> Path:
    """Moves a fully written checkpoint to ``folder/step-NNNNNN``.

    Every file is flushed to disk and entered with size and sha256 in ``MANIFEST.json``, which is written last; then
    the folder is renamed and its parent flushed.

    Args:
        staged: the written checkpoint, on the same file system.
        folder: the run's checkpoint folder.
        step: optimizer steps done.
        facts: what the checkpoint belongs to: data fingerprint, plan hash, versions.

    Raises:
        OSError: the disk is full or not writable; ``folder`` is as it was.
    """
    (staged / "training_args.bin").unlink(missing_ok=True)  # a pickle, and it would hold tokens
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    listed = {}
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        listed[str(path.relative_to(staged))] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
    write_json(staged / MANIFEST, {"step": step, **facts, "files": listed})
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:06d}"
    staged.rename(final)
    _flush_folder(folder)
    return final


def rotate(folder: Path, keep: int, best: Path | None) -> None:
    """Deletes the oldest checkpoints beyond ``keep``; never the best one."""
    checkpoints = sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    for path in checkpoints[:-keep]:
        if best is None or path != best:
            shutil.rmtree(path)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
