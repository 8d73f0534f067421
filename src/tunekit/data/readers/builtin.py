"""``builtin:<part>``: the demo world that comes with tunekit; it needs no file and no network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from tunekit.core.errors import UserError
from tunekit.core.files import sha256_file, sha256_json
from tunekit.core.registry import did_you_mean
from tunekit.data.readers.record import Record

PREFIX = "builtin:"


def _named(path: str, split: str | None) -> tuple[str, Literal["train", "held_out"]]:
    from tunekit.data import world

    part = path.removeprefix(PREFIX)
    if part not in world.PARTS:
        raise UserError(f"the demo world has no part '{part}'", fix=did_you_mean(part, world.PARTS))
    if split in (None, "train"):
        return part, "train"
    if split == "held_out":
        return part, "held_out"
    raise UserError(f"'{path}' has no split '{split}'", fix=did_you_mean(split or "", ("train", "held_out")))


def shown(path: str, split: str | None) -> str:
    """How the source is named in messages: ``builtin:chats[train]``.

    Raises:
        UserError: there is no such part or split.
    """
    part, half = _named(path, split)
    return f"{PREFIX}{part}[{half}]"


def read(path: str, split: str | None, count: int | None = None) -> Iterator[Record]:
    """Yields the part's rows, numbered from 1: its own number of them, or ``count``, be it fewer or more.

    Raises:
        UserError: there is no such part or split.
    """
    from tunekit.data import world

    yield from enumerate(world.rows(*_named(path, split), count), start=1)


def fingerprint(path: str, split: str | None) -> dict[str, Any]:
    """Name and version; the version is the hash of the code that makes the rows."""
    from tunekit.data import world

    folder = Path(world.__file__).parent
    code = {file.name: sha256_file(file) for file in sorted(folder.glob("*.py"))}
    return {"file": shown(path, split), "size": 0, "sha256": sha256_json(code)}
