"""What a model name means: the embedded default, a local folder, or a Hub id. Decided without loading anything."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl

from tunekit.core.errors import UserError
from tunekit.core.registry import did_you_mean, nearest

TINY = Path(__file__).parent / "builtin" / "tiny"
BUILTIN = ("tiny", "random")
ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "gpt2")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?\Z")
_HOLDS = {
    "model.name": ("model", ("config.json",)),
    "model.tokenizer": ("tokenizer", ("tokenizer.json", "tokenizer_config.json")),
}
_RANDOM_KEYS = ("arch", "layers", "hidden", "heads", "kv_heads", "vocab", "length")


@dataclass(frozen=True)
class ModelName:
    """A resolved model name.

    ``location`` is what transformers loads tokenizer and weights from; ``random`` builds fresh weights from the config
    instead; ``shape`` holds the numbers of a ``builtin:random`` model.
    """

    text: str
    kind: Literal["builtin", "local", "hub"]
    location: str
    random: bool = False
    shape: dict[str, str] = field(default_factory=dict)


_HUB_FIX = "name a folder that is there, or a Hub id: org/name"


def resolve_name(text: str, where: Literal["model.name", "model.tokenizer"] = "model.name") -> ModelName:
    """Reads a model name.

    Args:
        text: the name.
        where: the recipe's key that holds it; a folder must have what that key needs.

    Raises:
        UserError: an unknown builtin, a folder that does not exist, or a text that is no Hub id; with the nearest name.
    """
    if text.startswith("builtin:"):
        return _builtin(text)
    path = Path(text).expanduser()
    if path.is_dir():
        what, files = _HOLDS[where]
        if not any((path / file).is_file() for file in files):
            if (path / "adapter_config.json").is_file():
                fix = f"merge it first (tunekit merge {text}), or name its base and `adapter: {{start: {text}}}`"
                raise UserError(f"'{text}' holds an adapter, not a whole model", where=where, fix=fix)
            raise UserError(
                f"'{text}' holds no {what} (no {files[0]})", where=where, fix="name a folder saved by transformers"
            )
        return ModelName(text, "local", str(path))
    if path.is_file():
        raise UserError(f"'{text}' is a file", where=where, fix="name the folder that holds config.json")
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or not _HUB_ID.match(text):
        raise UserError(f"there is no model folder '{text}'", where=where, fix=near(path) or _HUB_FIX)
    return ModelName(text, "hub", text)


def near(path: Path) -> str:
    """Words that name the folder beside a path whose name is nearest to it; empty where there is none."""
    folder = path.parent if path.parent.is_dir() else Path()
    close = nearest(path.name, [p.name for p in folder.iterdir() if p.is_dir()])
    return f"did you mean '{folder / close}'?" if close else ""


def _builtin(text: str) -> ModelName:
    name, _, query = text.removeprefix("builtin:").partition("?")
    if name not in BUILTIN:
        raise UserError(f"there is no builtin model '{name}'", where="model.name", fix=did_you_mean(name, BUILTIN))
    try:
        options = dict(parse_qsl(query, strict_parsing=True)) if query else {}
    except ValueError:
        raise UserError(f"'{query}' is not of the form key=value&key=value", where="model.name") from None
    allowed = ("init",) if name == "tiny" else _RANDOM_KEYS
    for key, value in options.items():
        if key not in allowed:
            raise UserError(f"builtin:{name} has no option '{key}'", where="model.name", fix=did_you_mean(key, allowed))
        if key == "arch" and value not in ARCHITECTURES:
            raise UserError(
                f"unknown architecture '{value}'", where="model.name", fix=did_you_mean(value, ARCHITECTURES)
            )
        if key not in ("arch", "init") and not (value.isdigit() and int(value) > 0):
            raise UserError(f"'{key}' must be a whole number >= 1; it is '{value}'", where="model.name")
    if options.get("init", "trained") not in ("trained", "random"):
        raise UserError("'init' must be trained or random", where="model.name", fix=f"it is '{options['init']}'")
    random = name == "random" or options.get("init") == "random"
    shape = options if name == "random" else {}
    return ModelName(text, "builtin", str(TINY), random, shape)
