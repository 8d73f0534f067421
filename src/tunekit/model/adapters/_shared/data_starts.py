"""Starts of LoRA that are computed when the adapter is on the model: EVA, LoRA-GA, LoftQ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    Batches = Iterable[Mapping[str, torch.Tensor]]
_WHERE = "adapter.init"
_ADAPTER = "default"


def eva_start(model: PeftModel, batches: Batches) -> None:
    """EVA (arXiv 2410.07170): A from the main directions of each layer's inputs; ranks move between the layers.

    Raises:
        UserError: no data.
    """
    from peft import initialize_lora_eva_weights

    found = [dict(batch) for batch in batches]
    _need_data(found, "eva")
    initialize_lora_eva_weights(model, found, adapter_name=_ADAPTER, show_progress_bar=False)


def gradient_start(model: PeftModel, batches: Batches) -> None:
    """LoRA-GA (arXiv 2407.05000): A and B from the gradient of the weights, which give up B A.

    Raises:
        UserError: no data.
    """
    import torch

    layers = _lora_layers(model)
    bases = [layer.get_base_layer() for layer in layers]
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    count, training = 0, model.training
    try:
        model.requires_grad_(False)
        for base in bases:
            base.weight.requires_grad_(True)
        model.eval()  # dropout has no part in the estimate
        with model.disable_adapter():
            for batch in batches:
                model(**batch).loss.backward()
                count += 1
        _need_data(range(count), "lora_ga")
        with torch.no_grad():
            for layer, base in zip(layers, bases, strict=True):
                # PEFT's own names: what its start reads, and removes
                base._peft_loraga_grad = base.weight.grad / count
                base.weight.grad = None
                layer.lora_ga_init(_ADAPTER, model.peft_config[_ADAPTER].lora_ga_config)
    finally:
        model.train(training)
        for parameter, wanted in before.items():
            parameter.requires_grad_(wanted)


def quantization_start(model: PeftModel, batches: Batches) -> None:
    """LoftQ (arXiv 2310.08659), one round: B A is the best of its rank to what quantization took from the weights.

    The quantized weights stay as they are: the adapter belongs on them.

    Raises:
        UserError: the weights are not quantized by bitsandbytes, or the full ones are nowhere.
    """
    import torch
    from peft.utils.integrations import dequantize_module_weight
    from transformers.pytorch_utils import Conv1D

    base, layers = model.get_base_model(), _lora_layers(model, named=True)
    if any(layer.get_base_layer().weight.is_floating_point() for layer in layers.values()):
        raise UserError("init: loftq starts from the error of quantized weights, and these are not", where=_WHERE,
                        fix="add `model.quantize: {kind: bnb, bits: 4}`")  # fmt: skip
    whole = dict(_unquantized(base).named_modules())
    with torch.no_grad():
        for name, layer in layers.items():
            now = dequantize_module_weight(layer.get_base_layer()).float()
            full = whole[name].weight.T if isinstance(whole[name], Conv1D) else whole[name].weight
            left = full.to(now.device).float() - now  # quantized, a Conv1D is a linear layer: (outputs, inputs)
            u, s, v = torch.linalg.svd(left, full_matrices=False)
            r, root = layer.r[_ADAPTER], (s[: layer.r[_ADAPTER]] / layer.scaling[_ADAPTER]).sqrt()
            a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
            a.copy_(root[:, None] * v[:r])
            b.copy_(u[:, :r] * root)


def _unquantized(base: Any) -> Any:
    """The same model from the same place, not quantized, on the CPU.

    Raises:
        UserError: its weights are quantized on the disk.
    """
    from copy import deepcopy

    from transformers import AutoConfig

    config = deepcopy(base.config)
    del config.quantization_config
    place, revision = base.name_or_path, getattr(config, "_commit_hash", None)
    stored = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
    if getattr(stored, "quantization_config", None) is not None:
        raise UserError(
            f"init: loftq needs the full weights, and those of '{place}' are quantized on the disk",
            where=_WHERE,
            fix="name the model that they were quantized from, or take another init",
        )
    return type(base).from_pretrained(place, revision=revision, config=config, dtype="auto", use_safetensors=True)


def _lora_layers(model: PeftModel, *, named: bool = False) -> Any:
    from peft.tuners.lora.layer import LoraLayer

    found = {
        name: module
        for name, module in model.get_base_model().named_modules()
        if isinstance(module, LoraLayer) and _ADAPTER in module.lora_A
    }
    return found if named else list(found.values())


def _need_data(found: Any, init: str) -> None:
    if not len(found):
        raise UserError(f"init: {init} is computed from the data, and there is none", where=_WHERE)
