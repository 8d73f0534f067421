"""The YAML at the head of model and data set cards, the licence in it, and the licence texts beside it."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
COMMON_LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md")
LICENCE_KEYS = ("license", "license_name", "license_link")


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


def license_of(folder: Path | None, *, beside: Collection[str] = ()) -> dict[str, Any]:
    """The licence fields of the card in a folder; empty without a licence.

    Args:
        folder: where README.md lies; None for nowhere.
        beside: files that travel along. A link is kept where it names one of them, or leads somewhere from elsewhere.
    """
    front = front_matter(folder / "README.md") if folder is not None else {}
    found = {key: front[key] for key in LICENCE_KEYS if isinstance(front.get(key), str)}
    if isinstance(front.get("license"), list):
        found["license"] = [str(item) for item in front["license"]]
    link = found.get("license_link", "https://")
    if not link.startswith("https://") and link not in beside:
        del found["license_link"]
    return found if "license" in found else {}


def licence_files(folder: Path) -> list[Path]:
    """Licence texts that lie in a folder."""
    return sorted({path for pattern in LICENCE_FILES for path in folder.glob(pattern) if path.is_file()})


def as_yaml(value: Any) -> str:
    """A plain value as YAML, one key a line."""
    from ruamel.yaml import YAML

    writer, text = YAML(), io.StringIO()
    writer.width = 1000
    writer.dump(value, text)
    return text.getvalue()
