"""The fresh process in which a model is pruned, written, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.compress.dtypes import round_weights
from tunekit.compress.prune.contract import Pruning
from tunekit.compress.prune.layers import find_decoder
from tunekit.compress.stored import dtypes
from tunekit.core.errors import MachineError, UserError, raise_all
from tunekit.core.registry import PRUNERS
from tunekit.model.quiet import hushed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PROBE = 32  # tokens
CLOSE = {"float32": 1e-3}
CLOSE_ROUNDED = 0.05
"""What is read back must answer as what was chosen did: the root mean square of the differences of logits, to this part
of that of the logits. In 16 bits the same sums without their zeros are rounded otherwise."""


def work(job: Mapping[str, Any]) -> dict[str, Any]:
    """Prunes one model.

    Args:
        job: ``way``, ``config``, ``source``, ``target``, ``rows`` (token ids), ``threads``.

    Returns:
        ``chosen``: what the way says of what went.

    Raises:
        TunekitError: what the way refuses, or a model whose config has no way to say what is left of it.
    """
    import torch

    torch.set_num_threads(job["threads"])
    way = PRUNERS.load(job["way"])
    source, target = Path(job["source"]), Path(job["target"])
    with hushed():
        model, types = load(source)
        pruning = Pruning(model, find_decoder(model), way.Config.model_validate(job["config"]), job["rows"])
        raise_all(UserError, way.problems(pruning.config, pruning.decoder))
        with pruning.until_shrunk:
            chosen = way.choose(pruning)
            wanted = _answer(model)
        way.shrink(pruning, chosen)
        _write(model, types, target)
        del model, pruning
        _read_back(target, wanted)
    return {"chosen": chosen}


def load(folder: Path) -> tuple[PreTrainedModel, dict[str, str]]:
    """A model in evaluation mode, on the GPU where there is one, and the types of its tensors on the disk by name.

    It is in the type of its tensors, or in float32 where they are of several.
    """
    import torch
    from transformers import AutoModelForCausalLM

    types = dtypes(folder)
    every = set(types.values())
    dtype = every.pop() if len(every) == 1 else "float32"
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), types  # type: ignore[arg-type] # torch's device by its name


def _write(model: PreTrainedModel, types: Mapping[str, str], target: Path) -> None:
    from transformers import GenerationConfig

    if len(set(types.values())) > 1:
        most = str(model.config.dtype).removeprefix("torch.")
        round_weights(model, most, types)
    own = GenerationConfig()
    model.generation_config = own  # the source's is copied as it is: transformers refuses to write some that it reads
    model.config.use_cache = True
    model.save_pretrained(target)
    (target / "generation_config.json").unlink(missing_ok=True)


def _answer(model: PreTrainedModel) -> torch.Tensor:
    """(`PROBE`, V) float32: the logits of ids that are the same for every model of a vocabulary."""
    import torch

    vocabulary = model.config.get_text_config().vocab_size
    ids = (torch.arange(PROBE, device=model.device) * 7919 + 1) % vocabulary
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids[None], use_cache=False).logits[0].float().cpu()
    return found


def _read_back(target: Path, wanted: torch.Tensor) -> None:
    """Whether the folder, as anyone loads it, is the model that was chosen.

    Raises:
        UserError: it is another one: the config has no way to say what was done.
        MachineError: it cannot be loaded.
    """
    try:
        model, _ = load(target)
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise MachineError(f"what was written cannot be loaded: {told[0]}", where=str(target)) from error
    found = _answer(model)
    far = float((found - wanted).norm() / wanted.norm()) if found.shape == wanted.shape else float("inf")
    if not far <= CLOSE.get(str(model.dtype).removeprefix("torch."), CLOSE_ROUNDED):
        kind = model.config.get_text_config().model_type
        what = f"a {kind} without these parts answers otherwise once it is loaded again (logits differ by {far:.1%})"
        raise UserError(what, fix="its config cannot say what was cut: take `--way wanda`, which cuts nothing away")
