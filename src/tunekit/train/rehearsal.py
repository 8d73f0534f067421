"""The end of a run is rehearsed at its beginning: the model is saved, read back and compared before the first step."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import MachineError
from tunekit.model.save import save_model
from tunekit.runs.layout import RunFolder
from tunekit.train.disk import SMALL_FILES, full_disk_error, weight_bytes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def rehearse(trainer: Any, tokenizer: PreTrainedTokenizerBase, folder: RunFolder, turn_end: int | None) -> int:
    """Saves the model as the end of the run will, reads every tensor back, and removes it all; on rank 0 alone.

    Model, configurations and trainer are as before afterwards.

    Args:
        trainer: with its model.
        tokenizer: saved with the model.
        folder: the run's.
        turn_end: id of the token that ends an assistant turn.

    Returns:
        Bytes that were written.

    Raises:
        MachineError: the place cannot be written to, the disk is full, or a tensor came back changed.
    """
    from safetensors import SafetensorError

    model = trainer.accelerator.unwrap_model(trainer.model)
    scratch = folder.path / ".rehearsal"
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    try:
        _try_places(folder, scratch)
        with _unchanged(model):
            save_model(model, tokenizer, scratch / "model", turn_end)
        _compare(model, scratch / "model")
        return sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file())
    except (OSError, SafetensorError) as error:
        needed = weight_bytes(model) + SMALL_FILES
        raise full_disk_error(error, folder.path, needed) or _refused(error, folder.path) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _try_places(folder: RunFolder, scratch: Path) -> None:
    """Checkpoints and the model must be able to come to their places by renaming."""
    if folder.model.exists() or folder.model.is_symlink():
        raise MachineError("the finished model could not be put here: there is something", where=str(folder.model),
                           fix="move it away, or name another folder (output.dir)")  # fmt: skip
    (scratch / "trial").mkdir(parents=True)
    made = not folder.checkpoints.exists()
    folder.checkpoints.mkdir(exist_ok=True)
    moved = folder.checkpoints / ".rehearsal"
    shutil.rmtree(moved, ignore_errors=True)
    (scratch / "trial").rename(moved).rmdir()
    if made:
        folder.checkpoints.rmdir()


def _refused(error: BaseException, folder: Path) -> MachineError:
    if not isinstance(error, OSError):
        return MachineError(
            f"a saved model cannot be read back: {error}",
            where=str(folder),
            fix="look at this disk's health, or name another folder (output.dir)",
        )
    place = error.filename2 or error.filename or folder
    return MachineError(
        f"the run cannot be saved here: {error.strerror or error}",
        where=str(place),
        fix="give write permission (chmod), or name another folder (output.dir)",
    )


@contextmanager
def _unchanged(model: PreTrainedModel) -> Iterator[None]:
    """Saving writes into the model's configurations (use_cache, stop ids): they get back what they had."""
    from peft import PeftModel
    from transformers import PreTrainedModel

    configs: list[Any] = list(model.peft_config.values()) if isinstance(model, PeftModel) else []
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            configs.append(module.config)
            if module.can_generate() and getattr(module, "generation_config", None) is not None:
                configs.append(module.generation_config)
    kept = [(config, dict(vars(config))) for config in {id(config): config for config in configs}.values()]
    try:
        yield
    finally:
        for config, values in kept:
            vars(config).clear()
            vars(config).update(values)


def _has_adapter(model: PreTrainedModel) -> bool:
    from peft import PeftModel

    return isinstance(model, PeftModel)


def _expected(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors by the names under which they are saved."""
    if _has_adapter(model):
        from peft import get_peft_model_state_dict

        return dict(get_peft_model_state_dict(model))
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(model, model.state_dict()))  # some models are saved under other names


def _compare(model: PreTrainedModel, folder: Path) -> None:
    """Every saved tensor must have the bytes of the model's, and every tensor of the model must be saved, or tied."""
    from safetensors import safe_open

    expected = _expected(model)
    there = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                if name not in expected or not _same(file.get_tensor(name), expected[name]):
                    raise _changed(name, "came back from the disk changed", folder)
                there.add(name)
    held = {expected[name].data_ptr() for name in there}
    ignored = () if _has_adapter(model) else model._keys_to_ignore_on_save or ()
    for name, value in expected.items():
        if name not in there and value.data_ptr() not in held and name not in ignored:
            raise _changed(name, "was not saved", folder)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal in every bit, so that NaN is itself and 0.0 is not -0.0."""
    import torch

    other = other.detach().cpu().contiguous()
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def _changed(name: str, what: str, folder: Path) -> MachineError:
    return MachineError(
        f"the tensor '{name}' {what}",
        where=str(folder.parent.parent),
        fix="look at this disk's health, or name another folder (output.dir)",
    )
