"""What a run was made with: versions of the libraries, the commit of the working folder; no name, no address."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tunekit.runs.record import Git, Record

_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")
_PATIENCE = 10.0  # seconds git may take


def library_versions() -> dict[str, str]:
    """The versions of Python and of the libraries that decide a run's numbers, read without importing them."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_state(folder: Path) -> Git | None:
    """The commit checked out in ``folder`` and whether tracked files differ from it; None outside a repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return Git(commit=commit, dirty=None if changes is None else bool(changes))


def _git(folder: Path, *words: str) -> str | None:
    """What a git command prints, or None when there is no git, no repository, or no answer in time."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def environment_words(record: Record) -> list[tuple[str, list[tuple[str, str]]]]:
    """The record's surroundings as titled lists of (name, value), for the report and the terminal."""
    run = {
        "tunekit": record.tunekit,
        "plan": record.plan_hash[:16],
        "started": record.created,
        "ended": record.finished,
    }
    dirty = {True: "uncommitted changes", False: "none", None: "unknown"}
    git = {"commit": record.git.commit[:12], "changes": dirty[record.git.dirty]} if record.git else {}
    blocks: list[tuple[str, Mapping[str, Any]]] = [
        ("Run", run | ({"artefact": record.artefact} if record.artefact else {})),
        ("Versions", record.versions),
        ("Hardware", record.hardware),
        ("Git", git),
        ("Seeds", record.seeds),
    ]
    words = [(title, [(_label(key), _plain(value, key)) for key, value in values.items()]) for title, values in blocks]
    return [*words, ("Interruptions", _interruptions(record))]


def _interruptions(record: Record) -> list[tuple[str, str]]:
    """Where the run was gone on with, and where training went back."""
    found = [(f"resumed {part.at}", "; ".join((f"from step {part.step}", *part.changes))) for part in record.resumed]
    for back in record.training.rollbacks if record.training else ():
        left_out = ", ".join(map(str, back.skipped))
        found.append((f"back to step {back.to}", f"{back.why}; left out: steps {left_out}"))
    return found


def _label(key: str) -> str:
    return key.removesuffix("_gb").replace("_", " ")


def _plain(value: Any, key: str = "") -> str:
    """A value of the environment in words; ``key`` tells its unit."""
    if value is None or value in ([], {}):
        return "none"
    if isinstance(value, Mapping):
        known = [_plain(item, str(name)) for name, item in value.items() if name in ("name", "memory_gb")]
        rest = [
            f"{_label(str(name))} {_plain(item)}" for name, item in value.items() if name not in ("name", "memory_gb")
        ]
        return ", ".join(known + rest)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "; ".join(_plain(item) for item in value)
    words = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{words} GB" if key.endswith("_gb") else words
