"""Keeps what belongs to a person or a machine out of records and reports: secrets, home folders, absolute paths."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|_AUTH|_KEY$", re.IGNORECASE)
_SECRET_SHAPE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16})\b"
)
_URL_LOGIN = re.compile(r"(?<=://)[^/\s@]+@")
_OTHER_HOME = re.compile(r"(?<![\w.~-])/(?:home|Users)/[^/\s:'\"]+")
_ABSOLUTE = re.compile(r"(?<![\w:/.~<>…-])/(?:[\w.+@~-]+/)+([\w.+@~-]+)")
# What the model was asked and answered is content: an absolute path in it is part of the task and stays.
_CONTENT = frozenset({"prompt", "reference", "base", "tuned"})
_SHORTEST_SECRET = 8


@dataclass(frozen=True)
class Scrubber:
    """Replaces private texts wherever they stand.

    Args:
        run: the run folder; paths below it become relative to it.
        here: the working folder; paths below it become relative to it.
        home: the home folder, shown as ``~``.
        host: the machine's name.
        environ: the environment; the values of variables that sound secret are replaced by ``<NAME>``.
    """

    run: Path
    here: Path
    home: Path
    host: str
    environ: Mapping[str, str]

    @classmethod
    def of_this_machine(cls, run: Path) -> Scrubber:
        """The scrubber for a run folder on this machine, for this user and environment."""
        return cls(run.absolute(), Path.cwd(), Path.home(), socket.gethostname(), dict(os.environ))

    @cached_property
    def _folders(self) -> list[tuple[Path, str]]:
        """Folders and what stands for them, innermost first; never one above the home, which would leave its name."""
        folders = [(self.run, "."), (self.here, "."), (self.home, "~")]
        kept = [(folder, shown) for folder, shown in folders if folder not in self.home.parents]
        return sorted(kept, key=lambda pair: -len(pair[0].parts))

    def text(self, text: str, *, content: bool = False) -> str:
        """One text, scrubbed; ``content`` is text of prompts and answers, in which foreign paths and names stay."""
        for name, value in self.environ.items():
            if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name):
                text = text.replace(value, f"<{name}>")
        text = _SECRET_SHAPE.sub("<secret>", text)
        text = _URL_LOGIN.sub("", text)
        for folder, shown in self._folders:
            text = _replace_folder(text, folder, shown)
        if content:
            return text
        text = _OTHER_HOME.sub("~", text)
        if len(self.host) > 3 and self.host != "localhost":
            text = re.sub(rf"(?<![\w-]){re.escape(self.host)}(?![\w-])", "<host>", text)
        return _ABSOLUTE.sub(r"…/\1", text)

    def value(self, value: Any, *, content: bool = False) -> Any:
        """A plain value (mappings, lists, texts) with every text in it scrubbed, keys too."""
        if isinstance(value, str):
            return self.text(value, content=content)
        if isinstance(value, Mapping):
            return {
                self.text(str(key)): self.value(item, content=content or key in _CONTENT) for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.value(item, content=content) for item in value]
        return value


def _replace_folder(text: str, folder: Path, shown: str) -> str:
    """``folder`` at the head of a path in ``text`` becomes ``shown``; below ``.`` the path simply becomes relative."""
    if len(folder.parts) < 2:  # the root of the file system is the head of every path
        return text
    pattern = rf"(?<![\w./~-]){re.escape(str(folder))}(?P<rest>/(?=[^\s/])|(?![\w.-]))"
    inside = "" if shown == "." else f"{shown}/"
    return re.sub(pattern, lambda match: inside if match["rest"] else shown, text)


def scrub(value: Any, run: Path) -> Any:
    """``value`` as it may be written into the run folder ``run`` and shown to others."""
    return Scrubber.of_this_machine(run).value(value)
