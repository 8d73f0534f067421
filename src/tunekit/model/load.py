"""Loading weights, and putting an adapter on them. Only safetensors, never remote code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import MachineError, UserError
from tunekit.core.registry import ADAPTERS, nearest
from tunekit.model.names import resolve_name
from tunekit.model.tokenizer import hub_errors, load_config
from tunekit.plan.plan import Plan

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Loaded:
    """A model ready to be trained, with its parameter counts."""

    model: PreTrainedModel
    parameters: int
    trainable: int


def load_model(plan: Plan) -> Loaded:
    """Loads the plan's model, on the CPU, with its adapter; seeded, so fresh weights are the same each time.

    Raises:
        UserError: no such model, weights that are not safetensors, adapter targets that match nothing.
        MachineError: the Hub cannot be reached, or memory does not suffice.
    """
    import torch
    from transformers import set_seed

    set_seed(plan.recipe.train.seed)
    model = _base(plan, getattr(torch, plan.weights_dtype))
    model.config.use_cache = False
    parameters = sum(parameter.numel() for parameter in model.parameters())
    block = plan.recipe.adapter_block
    if block is not None:
        model = _with_adapter(model, ADAPTERS.load(block.kind).peft_config(block), plan)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Loaded(model, parameters, trainable)


def _base(plan: Plan, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    block = plan.recipe.model
    name = resolve_name(block.name)
    options: dict[str, Any] = {} if block.attention == "auto" else {"attn_implementation": block.attention}
    if name.random:
        return AutoModelForCausalLM.from_config(load_config(block), dtype=dtype, **options)
    with hub_errors(name):
        try:
            return AutoModelForCausalLM.from_pretrained(
                name.location,
                revision=block.revision,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                **options,
            )
        except ImportError as error:
            raise MachineError(
                str(error).strip().splitlines()[0], where="model", fix="`tunekit doctor` shows what is missing"
            ) from error


def _with_adapter(model: PreTrainedModel, config: Any, plan: Plan) -> PreTrainedModel:
    from peft import get_peft_model

    wanted = config.target_modules
    if isinstance(wanted, (list, set, tuple)):
        known = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if name}
        for target in sorted(wanted):
            if target not in known and not any(name.endswith(f".{target}") for name, _ in model.named_modules()):
                close = nearest(target, known)
                hint = f"did you mean '{close}'?" if close else f"known: {', '.join(sorted(known))}"
                raise UserError(f"no module of the model is called '{target}'", where="adapter.targets", fix=hint)
    try:
        wrapped = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"the adapter does not fit the model: {error}", where="adapter", fix="change adapter.targets"
        ) from error
    for adapter in wrapped.peft_config.values():
        adapter.base_model_name_or_path = plan.recipe.model.name  # not the place where this machine keeps it
        adapter.revision = plan.recipe.model.revision
    return wrapped
