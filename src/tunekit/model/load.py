"""Loading weights, and putting an adapter on them. Only safetensors, never remote code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import MachineError, UserError, first_line, raise_all
from tunekit.core.registry import METHODS
from tunekit.model import kbit
from tunekit.model.adapt import with_adapter
from tunekit.model.names import resolve_name
from tunekit.model.new_tokens import make_room
from tunekit.model.tokenizer import hub_errors, load_config
from tunekit.plan.allowed import quantized_problems
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


def load_model(plan: Plan, steps: int = 0) -> Loaded:
    """Loads the plan's model with its adapter; seeded, so fresh weights are the same each time.

    It lies on the CPU; quantized weights lie on the device that quantized them.

    Args:
        plan: the resolved plan.
        steps: optimizer steps of the run, which some kinds of adapter plan with.

    Raises:
        UserError: no such model, weights that are not safetensors, adapter targets that match nothing.
        MachineError: the Hub cannot be reached, or memory does not suffice.
    """
    import torch
    from transformers import set_seed

    set_seed(plan.recipe.train.seed)
    model = _base(plan, getattr(torch, plan.weights_dtype))
    model.config.use_cache = False
    parameters = int(model.num_parameters())
    if kbit.is_quantized(model):
        kbit.prepare(model, checkpointing=plan.recipe.train.gradient_checkpointing)
    new = make_room(model, plan.recipe.model) if plan.recipe.model.new_tokens else {}
    if plan.recipe.adapter_block is not None:
        model = with_adapter(model, plan, steps, new)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Loaded(model, parameters, trainable)


def _base(plan: Plan, dtype: torch.dtype) -> PreTrainedModel:
    block = plan.recipe.model
    auto, labels = _head(plan)
    name = resolve_name(block.name)
    options: dict[str, Any] = {} if block.attention == "auto" else {"attn_implementation": block.attention}
    if name.random:
        config = load_config(block)
        config.update(labels)
        return auto.from_config(config, dtype=dtype, **options)  # type: ignore[no-any-return]
    config = load_config(block)
    stored = kbit.quantized_of(config)
    if stored is not None and block.quantize is None:
        raise_all(UserError, quantized_problems(plan.recipe, *_kind_and_bits(stored)))
    options |= kbit.load_options(block.quantize, _compute_dtype(plan), plan.hardware.device, config)
    with hub_errors(name):
        try:
            model, info = auto.from_pretrained(
                name.location,
                revision=block.revision,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **labels,
                **options,
            )
        except ImportError as error:
            raise MachineError(
                first_line(error), where="model", fix="`tunekit doctor` shows what is missing"
            ) from error
    _refuse_missing(info["missing_keys"], scored=bool(labels))
    return model  # type: ignore[no-any-return]


def _refuse_missing(names: Iterable[str], *, scored: bool) -> None:
    """Refuses weights that the folder does not hold: they would be random, and nobody would know.

    Args:
        names: of the missing tensors.
        scored: the model gets a fresh head that scores.

    Raises:
        UserError: some are missing.
    """
    missing = sorted(name for name in names if not (scored and name.startswith("score.")))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"the model's files do not hold {', '.join(missing[:3])}{more}: these weights would be random",
            where="model.name",
            fix="name a whole model of this kind (a reward model has no head that writes)",
        )


def _head(plan: Plan) -> tuple[Any, dict[str, Any]]:
    """The class that loads the model with the head that the method trains, and options of its configuration."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if getattr(METHODS.load(plan.method), "HEAD", "language") == "score":
        return AutoModelForSequenceClassification, {"num_labels": 1}
    return AutoModelForCausalLM, {}


def _kind_and_bits(words: str) -> tuple[str, int]:
    kind, _, rest = words.partition(" ")
    bits = rest.removesuffix("-bit")
    return kind, int(bits) if bits.isdigit() else 0


def _compute_dtype(plan: Plan) -> torch.dtype:
    import torch

    found: torch.dtype = getattr(torch, plan.arithmetic)
    return found
