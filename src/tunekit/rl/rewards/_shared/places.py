"""Where the files are that a reward's block names."""

from __future__ import annotations

from pathlib import Path

from tunekit.core.errors import UserError
from tunekit.core.registry import nearest


def find(path: str, folder: Path, what: str, fix: str = "name one that is there") -> Path:
    """A file or folder, looked for in ``folder`` and then in the working folder; ``fix``: what to do if it is missing.

    Raises:
        UserError: it is in neither; what is there with nearly the same name is named.
    """
    given = Path(path).expanduser()
    places = list(dict.fromkeys(((folder / given).absolute(), given.absolute())))
    for place in places:
        if place.exists():
            return place
    looked = " and ".join(str(place) for place in places)
    raise UserError(f"there is no {what} '{path}'", fix=_close(places) or f"{fix} (looked for {looked})")


def _close(places: list[Path]) -> str:
    for place in places:
        beside = [item.name for item in place.parent.iterdir()] if place.parent.is_dir() else []
        close = nearest(place.name, beside)
        if close:
            return f"did you mean '{place.parent / close}'?"
    return ""
