"""The YAML at the head of model and data set cards: reading it, the licence in it, and where the Hub's cache has it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

_LICENSE_KEYS = ("license", "license_name", "license_link")
UNKNOWN = "not known here"


def front_matter(readme: Path) -> dict[str, Any]:
    """The YAML at the head of a card; empty when there is none that can be read."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        head, *rest = readme.read_text(encoding="utf-8").split("\n---", maxsplit=1)
        found = YAML(typ="safe").load(head.removeprefix("---")) if head.startswith("---\n") and rest else None
    except (OSError, UnicodeDecodeError, YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def snapshot(name: str, file: str, revision: str | None, kind: str) -> Path | None:
    """The folder of a Hub repository's files in the cache, found by one of them; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file, revision=revision, repo_type=kind)
    return Path(found).parent if isinstance(found, str) else None


def license_of(folder: Path | None) -> dict[str, Any]:
    """The licence fields of the card in a folder; a link is kept where it leads somewhere from elsewhere too."""
    front = front_matter(folder / "README.md") if folder is not None else {}
    found = {key: front[key] for key in _LICENSE_KEYS if isinstance(front.get(key), str)}
    if isinstance(front.get("license"), list):
        found["license"] = [str(item) for item in front["license"]]
    if not found.get("license_link", "https://").startswith("https://"):
        del found["license_link"]
    return found if "license" in found else {}


def license_words(folder: Path | None) -> str:
    """The licence as read in a sentence."""
    found = license_of(folder)
    license_ = found.get("license", UNKNOWN)
    words = ", ".join(license_) if isinstance(license_, list) else str(license_)
    return f"{words} ({found['license_name']})" if "license_name" in found else words


def as_yaml(value: Any) -> str:
    """A plain value as YAML, one key a line."""
    from ruamel.yaml import YAML

    writer, text = YAML(), io.StringIO()
    writer.width = 1000
    writer.dump(value, text)
    return text.getvalue()
