"""A self-contained folder for vLLM: weights, tokenizer, chat template, and generation config that ends a turn."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from tunekit.compress.source import Source
from tunekit.core.errors import UserError

KINDS = ("bfloat16", "float16", "float32")


def finish(source: Source, folder: Path) -> None:
    """Refuses a folder that a chat server could not end a turn with; vLLM takes its stops from generation_config.json.

    Raises:
        UserError: there is no id to stop at.
    """
    path = folder / "generation_config.json"
    stops = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.exists() else None
    if stops is None or stops == []:
        fix = "write eos_token_id into the model's generation_config.json"
        raise UserError("nothing says at which token an answer ends", where=source.name, fix=fix)


def use(folder: Path) -> str:
    """How it is served."""
    return shlex.join(["vllm", "serve", str(folder), "--served-model-name", folder.name])
