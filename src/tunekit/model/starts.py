"""LoRA that starts from a part of the base weights (PiSSA, OLoRA, LoRA-GA): saved as plain LoRA for the base as it is.

Such a start takes A0 B0 out of the weights W, and trains A B beside what is left. What was learnt is the difference:
s (B A - B0 A0), a LoRA of twice the rank on W itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_STARTS = ("pissa", "olora", "lora_ga")
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


def changes_base(model: Any) -> bool:
    """Whether an adapter was made from a part of the base weights, which they lack since."""
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return False
    start = getattr(model.active_peft_config, "init_lora_weights", None)
    return isinstance(start, str) and start.startswith(_STARTS)


def initial_state(model: Any) -> dict[str, torch.Tensor]:
    """What `convert` needs of the adapter before training: copies on the CPU; nothing for a common start."""
    from peft import get_peft_model_state_dict

    if not changes_base(model):
        return {}
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {
        name: value.detach().to("cpu", copy=True)
        for name, value in state.items()
        if ".lora_A." in name or ".lora_B." in name
    }


def convert(folder: Path, initial: Mapping[str, torch.Tensor]) -> None:
    """Rewrites an adapter that `save_pretrained` just wrote, so that it belongs on the base as it was loaded.

    Args:
        folder: of the adapter.
        initial: of `initial_state`, taken before the first step; empty leaves the folder as it is.
    """
    import torch
    from safetensors.torch import load_file, save_file

    if not initial:
        return
    state = load_file(folder / _WEIGHTS)
    for name, start in initial.items():
        start = start.to(state[name].dtype)
        rows, sign = (0, 1) if ".lora_A." in name else (1, -1)
        state[name] = torch.cat([state[name], sign * start], dim=rows).contiguous()
    save_file(state, folder / _WEIGHTS, metadata={"format": "pt"})
    path = folder / _CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    # the factor alpha / r (or alpha / sqrt(r)) stays as it was in training
    factor = 2**0.5 if config["use_rslora"] else 2
    config |= {"init_lora_weights": True, "lora_ga_config": None}
    config |= {"r": 2 * config["r"], "lora_alpha": factor * config["lora_alpha"]}
    config["rank_pattern"] = {name: 2 * rank for name, rank in (config["rank_pattern"] or {}).items()}
    config["alpha_pattern"] = {name: factor * alpha for name, alpha in (config["alpha_pattern"] or {}).items()}
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
