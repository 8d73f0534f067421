"""Takes the weights of a pretraining run into the package, rounded to bfloat16.

Run it as ``python -m tunekit.model.builtin.install_weights runs/tiny/model`` after
``tunekit pretrain recipes/pretrain/tiny.yaml``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tunekit.core.errors import UserError

FOLDER = Path(__file__).parent / "tiny"


def install(model: Path, folder: Path = FOLDER) -> Path:
    """Writes ``model.safetensors`` of the built-in tiny model.

    Args:
        model: the ``model`` folder of a pretraining run.
        folder: where the built-in model lies.

    Raises:
        UserError: the folder holds no single file of weights, or they do not fit the built-in configuration.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    source = model / "model.safetensors"
    if not source.is_file():
        fix = "name the model folder of a pretraining run"
        raise UserError("no model.safetensors there", where=str(model), fix=fix)
    weights = load_file(source)
    expected = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).state_dict()
    tied = set(expected) - set(weights)
    if tied - {"lm_head.weight"} or any(expected[name].shape != tensor.shape for name, tensor in weights.items()):
        raise UserError("the weights do not fit the built-in configuration", where=str(source), fix="train it again")
    target = folder / "model.safetensors"
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}, target, metadata={"format": "pt"})
    return target


if __name__ == "__main__":
    print(install(Path(sys.argv[1])))
