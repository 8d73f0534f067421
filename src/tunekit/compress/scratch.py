"""Folders in the temporary directory that do not outlive the program: what a killed one left, the next one removes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunekit.model.save import beside


@contextmanager
def scratch(what: str) -> Iterator[Path]:
    """A folder to work in while the block runs; those of the same name go whose programs are dead.

    Args:
        what: names it: ``proof``.

    Raises:
        OSError: as the file system says.
    """
    with beside(Path(tempfile.gettempdir()) / f"tunekit-{what}") as place:
        yield place
