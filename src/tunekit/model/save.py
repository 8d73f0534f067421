"""Writing the finished model: a plain Hugging Face or PEFT folder that anything loads."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tunekit.core.files import flush_folder, flush_tree

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def stop_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, turn_end: int | None) -> list[int]:
    """The ids at which generation stops: the tokenizer's EOS, the model's own, and the chat template's end of turn."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = [tokenizer.eos_token_id, turn_end, *(own if isinstance(own, list) else [own])]
    return sorted({token for token in ids if token is not None})


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, turn_end: int | None) -> None:
    """Writes model (or adapter), tokenizer, chat template and generation config; all of it or nothing.

    Args:
        model: the trained model, without a training wrapper.
        tokenizer: with the chat template that was trained.
        folder: must not exist yet.
        turn_end: id of the token that ends an assistant turn, so that generation stops there.

    Raises:
        OSError: the disk is full or not writable; nothing is left behind.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        if model.generation_config is not None:
            model.generation_config.eos_token_id = stop_ids(tokenizer, model, turn_end)
            model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.config.use_cache = True
        model.save_pretrained(staging)
        if not (staging / "generation_config.json").exists() and model.generation_config is not None:
            model.generation_config.save_pretrained(staging)  # an adapter's folder needs the stop ids as well
        tokenizer.save_pretrained(staging)
        staging.chmod(0o755)
        flush_tree(staging)  # the record will say that the run is done: then the model must be on the disk
        staging.rename(folder)
        flush_folder(folder.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
