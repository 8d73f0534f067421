"""An adapter as a whole model: the merge that lies by it already, or a new one, which goes with the block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunekit.compress.merge import Request, adapter_digest, base_facts, merge
from tunekit.core.errors import TunekitError
from tunekit.core.progress import Screen
from tunekit.model import artefact
from tunekit.model.restore import Artefact
from tunekit.model.save import beside

DEFAULT = "merged"
"""Where `tunekit merge` writes when nothing else is said, in the folder that it is given."""


@contextmanager
def merged(path: Path, found: Artefact, target: Path, screen: Screen) -> Iterator[Path]:
    """The folder of the merged model.

    Args:
        path: of the run or the adapter, as the user names it.
        found: the adapter.
        target: what is made of it; a new merge lies hidden beside.
        screen: is told which it is.

    Raises:
        UserError, MachineError, NotProvenError: as `merge.merge`.
    """
    there = proven_merge(path, found, screen)
    if there is not None:
        screen.say(f"{path}: its merge in {there} is taken")
        yield there
        return
    with beside(target) as place:
        screen.say(f"{path}: its {found.kind_word} adapter is merged into the base first")
        merge(Request(path, place / DEFAULT, noted=False), screen)
        yield place / DEFAULT


def proven_merge(path: Path, found: Artefact, screen: Screen) -> Path | None:
    """The folder that `tunekit merge` left, if it is whole, and of this adapter on this base in the base's own types.

    Args:
        path: as the user names it.
        found: the adapter.
        screen: is warned of one that is damaged.
    """
    folder = path / DEFAULT
    if not (folder / artefact.MANIFEST).is_file():
        return None
    try:
        manifest = artefact.verify(folder) or {}
    except TunekitError as error:
        screen.warn(f"the merge in {folder} is not taken: {error}")
        return None
    if manifest.get("adapter") != adapter_digest(found) or manifest.get("dtype") is not None:
        return None
    known = (manifest.get("base") or {}).get("weights")
    return folder if known and known == base_facts(found)["weights"] else None
