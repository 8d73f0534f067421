"""Prepared data is kept under a key made of all that shapes it, so it is never stale; `why` tells what changed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tunekit.core.files import sha256_file, sha256_json, write_json

PARTS = {
    "rows": "the input files, their format, columns, weights and limits",
    "tokenizer": "the tokenizer's files",
    "template": "the chat template",
    "mask": "which text is trained (data.loss_on, or the kind of material)",
    "lengths": "max_length, overlong, packing",
    "split": "what is held out, and the seed",
    "policy": "duplicates and references",
    "code": "tunekit's own data code",
}


@dataclass(frozen=True)
class Key:
    """The parts that shape prepared data, each a plain value."""

    parts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder's name: the first 24 hex digits of the key's sha256."""
        return sha256_json(dict(self.parts))[:24]


def root() -> Path:
    """Where prepared data is kept: beside the Hugging Face cache, so HF_HOME moves it too."""
    home = os.environ.get("HF_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tunekit" / "data"


def reference_root() -> Path:
    """Where log-probabilities of reference models are kept."""
    return root().parent / "reference"


@cache
def code_version() -> str:
    """Hash of the source files that turn rows into examples: editing them makes old prepared data unreachable."""
    here = Path(__file__).parent
    files = sorted(path for path in here.rglob("*") if path.suffix in (".py", ".jinja"))
    files.append(here.parent / "core" / "types.py")
    return sha256_json([(path.name, sha256_file(path)) for path in files])


def keep(key: Key, folder: Path, make: Callable[[Path], None]) -> Path:
    """Returns the folder of prepared data under ``folder``, made once.

    ``make`` writes into a temporary folder beside it, which is renamed when it is complete: a reader never sees half
    of it, and two runs that prepare the same data at once do not disturb each other.
    """
    final = folder / key.name
    if (final / "key.json").exists():
        os.utime(final / "key.json")  # when it was used last
        return final
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder, prefix=f".{key.name}."))
    try:
        make(staging)
        write_json(staging / "key.json", dict(key.parts))
        if (final / "key.json").exists():  # another run was faster, and may be reading it by now
            return final
        if final.exists():  # left by an interrupted deletion
            shutil.rmtree(final)
        try:
            staging.rename(final)
        except OSError:
            if not (final / "key.json").exists():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return final


@dataclass(frozen=True)
class Kept:
    """One folder of prepared data. ``size`` in bytes."""

    folder: Path
    parts: Mapping[str, Any]
    size: int
    used: float


def kept(folder: Path) -> list[Kept]:
    """All complete prepared data under ``folder``, last used first."""
    found = []
    for path in folder.glob("*/key.json"):
        size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
        parts = json.loads(path.read_text(encoding="utf-8"))
        found.append(Kept(path.parent, parts, size, path.stat().st_mtime))
    return sorted(found, key=lambda entry: -entry.used)


def changed_parts(key: Key, other: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The parts in which two keys differ, with a short description of the difference."""
    return [
        (name, _difference(other.get(name), value)) for name, value in key.parts.items() if other.get(name) != value
    ]


def _difference(old: Any, new: Any, path: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        return "; ".join(
            _difference(old.get(name), new.get(name), f"{path}.{name}" if path else name) for name in names
        )
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return "; ".join(
            _difference(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b
        )

    def short(value: Any) -> str:
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 48 else text[:45] + "..."

    return f"{path + ': ' if path else ''}{short(old)} -> {short(new)}"


def why(key: Key, folder: Path) -> tuple[bool, Kept | None, list[tuple[str, str]]]:
    """Whether ``key`` is prepared; otherwise the most similar prepared data and the parts in which it differs."""
    entries = kept(folder)
    if any(entry.folder.name == key.name for entry in entries):
        return True, None, []
    if not entries:
        return False, None, []

    def files(parts: Mapping[str, Any]) -> set[str]:
        sources = [*parts.get("rows", {}).get("train", []), *parts.get("rows", {}).get("eval", [])]
        return {file["file"] for source in sources for file in source.get("files", [])}

    wanted = files(key.parts)
    best = min(entries, key=lambda e: (-len(wanted & files(e.parts)), len(changed_parts(key, e.parts)), -e.used))
    return False, best, changed_parts(key, best.parts)
