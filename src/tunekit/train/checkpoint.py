"""Checkpoints appear under their name only when they are complete: staged, flushed, listed in a manifest, renamed."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekit.core.files import exchange, flush_file, flush_folder, sha256_file, sha256_json, write_json
from tunekit.runs.layout import checkpoint_name, checkpoints, step_of

MANIFEST = "MANIFEST.json"
DELETED = ".deleted-"
_HASHING = 4  # threads; hashing and flushing both let go of Python's lock


class Damaged(Exception):
    """A checkpoint is not what its manifest says.

    Args:
        file: the first file that is wrong, relative to the checkpoint.
        what: what is wrong with it.
    """

    def __init__(self, file: str, what: str) -> None:
        super().__init__(f"{file}: {what}")
        self.file, self.what = file, what


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are all as they were written. ``facts``: what it belongs to, from its manifest."""

    folder: Path
    step: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class Skipped:
    """A checkpoint that cannot be used, and why."""

    folder: Path
    why: Damaged


def put_in_place(staged: Path, folder: Path, step: int, facts: dict[str, Any]) -> Path:
    """Moves a fully written checkpoint to ``folder/step-NNNNNN``.

    Every file is flushed to disk and entered with size and sha256 in ``MANIFEST.json``, which is written last; then
    the folder is flushed and renamed, and its parent flushed: after a power cut there is a whole checkpoint or none. A
    checkpoint of the same step, made before the run went back, is replaced.

    Args:
        staged: the written checkpoint, on the same file system.
        folder: the run's checkpoint folder.
        step: optimizer steps done.
        facts: what the checkpoint belongs to: data fingerprint, plan hash, versions.

    Raises:
        OSError: the disk is full or not writable; what lies in ``folder`` is still whole.
    """
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    with ThreadPoolExecutor(_HASHING) as pool:
        entries = list(pool.map(_flushed, files))
    listed = {str(path.relative_to(staged)): entry for path, entry in zip(files, entries, strict=True)}
    content = {"step": step, **facts, "files": listed}
    write_json(staged / MANIFEST, {**content, "manifest_sha256": sha256_json(content)})
    for below in sorted({path.parent for path in files} | {staged}, key=lambda path: -len(path.parts)):
        flush_folder(below)
    if not folder.exists():
        folder.mkdir(parents=True)
        flush_folder(folder.parent)
    final = folder / checkpoint_name(step)
    if final.exists() and exchange(staged, final):
        replaced: Path | None = staged.rename(_doomed(final))
    else:
        replaced = final.rename(_doomed(final)) if final.exists() else None
        staged.rename(final)
    flush_folder(folder)
    if replaced is not None:
        shutil.rmtree(replaced)
    return final


def _doomed(folder: Path) -> Path:
    """The name under which a checkpoint is deleted: a kill in the middle must not leave half of it under its own."""
    return folder.with_name(f"{DELETED}{folder.name}")


def _flushed(path: Path) -> dict[str, Any]:
    flush_file(path)
    return {"size": path.stat().st_size, "sha256": sha256_file(path)}


def verify(folder: Path) -> Checkpoint:
    """Reads a whole checkpoint and compares it with its manifest.

    Raises:
        Damaged: the manifest or a file is missing, or not as it was written.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        checksum = manifest.pop("manifest_sha256")
        files, step = manifest["files"], int(manifest["step"])
    except FileNotFoundError:
        raise Damaged(MANIFEST, "is missing: the checkpoint was never completed") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Damaged(MANIFEST, "is damaged") from None
    if sha256_json(manifest) != checksum:
        raise Damaged(MANIFEST, "is damaged: its checksum does not fit")
    if folder.name != checkpoint_name(step):
        raise Damaged(MANIFEST, f"is that of step {step}")
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise Damaged(name, "is missing")
        if (size := path.stat().st_size) != entry["size"]:
            raise Damaged(name, f"has {size:,} bytes, it was written with {entry['size']:,}")
    with ThreadPoolExecutor(_HASHING) as pool:
        hashes = pool.map(lambda name: sha256_file(folder / name), files)
        for name, found in zip(files, hashes, strict=True):
            if found != files[name]["sha256"]:
                raise Damaged(name, "is not as it was written: its sha256 differs")
    return Checkpoint(folder, step, manifest)


def newest(folder: Path, *, before: int | None = None) -> tuple[Checkpoint | None, list[Skipped]]:
    """The newest whole checkpoint (of a step before ``before``), and the newer ones that are damaged."""
    skipped: list[Skipped] = []
    for path in reversed(checkpoints(folder)):
        if before is not None and step_of(path) >= before:
            continue
        try:
            return verify(path), skipped
        except Damaged as why:
            skipped.append(Skipped(path, why))
    return None, skipped


def set_aside(folder: Path) -> Path:
    """Renames a damaged checkpoint, so that its step can be saved again; nothing of it is deleted."""
    aside = folder.with_name(f"{folder.name}.damaged")
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}.damaged-{number}")
    folder.rename(aside)
    return aside


def rotate(folder: Path, keep: int, best: Path | None) -> None:
    """Deletes the oldest checkpoints beyond ``keep``, never the best one, once the newest is known to be whole.

    Raises:
        Damaged: the newest is not what was written; nothing has been deleted.
    """
    found = checkpoints(folder)
    surplus = [path for path in found[:-keep] if best is None or path.name != best.name]
    if surplus:
        verify(found[-1])
    for path in surplus:
        shutil.rmtree(path.rename(_doomed(path)))
