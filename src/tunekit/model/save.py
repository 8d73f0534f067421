"""Writing the finished model: a plain Hugging Face or PEFT folder that anything loads."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.files import flush_folder, flush_tree
from tunekit.model.artefact import CARD, write_manifest
from tunekit.model.starts import convert
from tunekit.model.tokenizer import embedding_rows

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MARK = ".staging-"


def stop_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, turn_end: int | None) -> list[int]:
    """The ids at which generation stops: the tokenizer's EOS, the model's own, and the chat template's end of turn."""
    generation = getattr(model, "generation_config", None)  # a model that scores has none
    own = generation.eos_token_id if generation is not None else None
    ids = [tokenizer.eos_token_id, turn_end, *(own if isinstance(own, list) else [own])]
    return sorted({token for token in ids if token is not None})


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder`` to write in; it gets that name when the block ends well, else it is removed.

    Raises:
        OSError: the disk is full or not writable, or ``folder`` is there and not empty; nothing is left behind.
    """
    with beside(folder) as staging:
        yield staging
        staging.chmod(0o755)
        flush_tree(staging)  # the record will say that the run is done: then the model must be on the disk
        staging.rename(folder)
        flush_folder(folder.parent)


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """A hidden folder beside ``folder`` to work in; at the end it goes, and before, those that the dead left there.

    The kernel holds its lock for as long as this process, or one forked from it, lives: what is locked is never swept.

    Raises:
        OSError: as the file system says.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    place, lock = _locked(folder)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(lock)


def sweep(folder: Path) -> None:
    """Removes what processes that were killed left beside a folder; where the file system has no locks, nothing."""
    _sweep(folder.parent, glob.escape(f".{folder.name}{_MARK}"))


def sweep_within(folder: Path) -> None:
    """Removes what processes that were killed left in a folder, beside whichever folders they were writing there."""
    _sweep(folder, f".*{_MARK}")


def _sweep(folder: Path, beginning: str) -> None:
    for path in folder.glob(f"{beginning}*"):
        with suppress(OSError):  # somebody else's, or gone by now
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _locked(folder: Path) -> tuple[Path, int]:
    """A new hidden folder, and the descriptor that locks it."""
    while True:
        place = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}{_MARK}"))
        try:
            lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # another process swept it before it was locked
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # it is being swept right now
            os.close(lock)
            continue
        except OSError:  # no locks on this file system: then nothing is swept on it either
            return place, lock
        if os.fstat(lock).st_nlink and place.exists():
            return place, lock
        os.close(lock)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    turn_end: int | None,
    facts: Mapping[str, Any] | None = None,
    initial: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Writes model (or adapter), tokenizer, chat template, generation config and manifest; all of it or nothing.

    Args:
        model: the trained model, without a training wrapper.
        tokenizer: with the chat template that was trained.
        folder: must not exist yet.
        turn_end: id of the token that ends an assistant turn, so that generation stops there.
        facts: what the manifest says beside the files: ``base``, see `artefact.base_facts`; without facts there is no
            manifest.
        initial: of `starts.initial_state`, for an adapter that started from a part of the base weights.

    Raises:
        OSError: the disk is full or not writable; nothing is left behind.
    """
    with staged(folder) as staging:
        generation = getattr(model, "generation_config", None)
        if generation is not None:
            generation.eos_token_id = stop_ids(tokenizer, model, turn_end)
            generation.pad_token_id = tokenizer.pad_token_id
        model.config.use_cache = True
        model.save_pretrained(staging, **_rows_option(model, facts))
        (staging / CARD).unlink(missing_ok=True)  # PEFT's names the place where this machine keeps the base
        convert(staging, initial or {})
        if not (staging / "generation_config.json").exists() and generation is not None:
            generation.save_pretrained(staging)  # an adapter's folder needs the stop ids as well
        tokenizer.save_pretrained(staging)
        if facts is not None:
            write_manifest(staging, {**facts, "rows": embedding_rows(model.config)}, tokenizer)


def _rows_option(model: PreTrainedModel, facts: Mapping[str, Any] | None) -> dict[str, Any]:
    """Whether an adapter's file holds the embeddings too: where rows were added to those of the base.

    Left to itself PEFT compares with the base's config, which it may not reach; then it says no, and rows are lost.
    """
    from peft import PeftModel

    rows = ((facts or {}).get("base") or {}).get("rows")
    if rows is None or not isinstance(model, PeftModel):
        return {}
    return {"save_embedding_layers": embedding_rows(model.config) != rows}
