"""Cards of models and data sets that lie in the Hub's cache, and their licences in words."""

from __future__ import annotations

from pathlib import Path

from tunekit.core.front_matter import as_yaml, front_matter, license_of

__all__ = ["UNKNOWN", "as_yaml", "front_matter", "license_of", "license_words", "snapshot"]

UNKNOWN = "not known here"


def snapshot(name: str, file: str, revision: str | None, kind: str) -> Path | None:
    """The folder of a Hub repository's files in the cache, found by one of them; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file, revision=revision, repo_type=kind)
    return Path(found).parent if isinstance(found, str) else None


def license_words(folder: Path | None) -> str:
    """The licence as read in a sentence."""
    found = license_of(folder)
    license_ = found.get("license", UNKNOWN)
    words = ", ".join(license_) if isinstance(license_, list) else str(license_)
    return f"{words} ({found['license_name']})" if "license_name" in found else words
