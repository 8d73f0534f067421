"""What the kinds of adapter are, what they can do and how much they train: for `tunekit adapters` and its page."""

from __future__ import annotations

import copy
import io
import json
import warnings
from contextlib import redirect_stderr
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from tunekit.core.errors import UserError
from tunekit.core.registry import ADAPTERS
from tunekit.plan.allowed import Allowed, allowed, is_measured
from tunekit.recipe.adapters import TargetedBlock
from tunekit.recipe.document import parse
from tunekit.recipe.load import check
from tunekit.recipe.reference import Key, keys_of
from tunekit.recipe.schema import Recipe, TrainBlock

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunekit.plan.plan import Plan

EXAMPLES: dict[str, dict[str, Any]] = {
    "c3a": {"block_size": 64},
    "cartridge": {"num_virtual_tokens": 20},
    "freeze": {"last_layers": 1},
    "shadow": {"targets": r".*(layers|h)\.\d+"},
    "trainable_tokens": {"tokens": [0]},
    "vblora": {"vector_length": 64},
}
"""Keys with which a kind is counted that has no usable value of its own for every model."""
BYTES = 16
"""Of memory for a trained parameter: itself, its gradient and the two states of AdamW, in float32."""
_STEPS = 1000
_IN_MEMORY = 20_000_000


class Kind(NamedTuple):
    """One kind of adapter.

    ``tended``: it has a file here, with keys of its own; else its keys are the fields of PEFT's configuration.
    ``refused``: why it cannot be trained; empty where it can. ``packages``: what it always needs, beside tunekit's own.
    ``can``: None of a kind that nobody has measured.
    """

    name: str
    help: str
    tended: bool
    refused: str
    packages: tuple[str, ...]
    can: Allowed | None
    learning_rate: float


def kind_of(name: str) -> Kind:
    """What is known of a kind without a model; nothing heavy is imported.

    Raises:
        UserError: there is no such kind.
    """
    plugin = ADAPTERS.load(name)
    usual = TrainBlock.model_fields["learning_rate"].default
    return Kind(
        name,
        ADAPTERS.help(name),
        name in ADAPTERS.files,
        getattr(plugin, "REFUSED", ""),
        () if hasattr(plugin, "packages") else tuple(getattr(plugin, "PACKAGES", {}).values()),
        allowed(name) if is_measured(name) else None,
        getattr(plugin, "LEARNING_RATE", usual),
    )


def own_keys(name: str) -> list[Key]:
    """The keys of a kind's block, without those that are the same in every kind."""
    shared = keys_of(TargetedBlock)
    return [key for key in keys_of(ADAPTERS.load(name).Config) if key.name != "kind" and key not in shared]


class Counter:
    """Counts the parameters that the kinds train in one model, which is built without its weights.

    Args:
        model: its name, as in a recipe.
    """

    def __init__(self, model: str) -> None:
        self.name = model

    @property
    def parameters(self) -> int:
        """Of the model, in all."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    @cached_property
    def _model(self) -> PreTrainedModel:
        import torch
        from transformers import AutoModelForCausalLM

        from tunekit.model.names import resolve_name
        from tunekit.model.tokenizer import hub_errors, load_config

        config = load_config(self._recipe("lora").model)
        with hub_errors(resolve_name(self.name)), torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        if sum(parameter.numel() for parameter in model.parameters()) > _IN_MEMORY:
            return model
        return AutoModelForCausalLM.from_config(config)  # some kinds begin with a decomposition of the weights

    def _recipe(self, kind: str) -> Recipe:
        block = {"kind": kind} | EXAMPLES.get(kind, {})
        model = {"name": self.name, "tokenizer": "builtin:tiny"}  # any one will do: nothing is made of text here
        value = {"method": "sft", "model": model, "adapter": block, "data": {"train": [{"path": "-"}]}}
        return check(parse(json.dumps(value), "adapters"))

    def trained(self, kind: str) -> int:
        """Parameters that a kind trains, with its own defaults and `EXAMPLES`.

        Raises:
            UserError: it does not go with this model, or begins with a decomposition of weights that are not there.
            MachineError: the model's configuration cannot be reached.
        """
        from tunekit.model.adapt import with_adapter

        model, plan = copy.deepcopy(self._model), SimpleNamespace(recipe=self._recipe(kind))
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():  # bars and advice for a training
            warnings.simplefilter("ignore")
            try:
                adapted = with_adapter(model, cast("Plan", plan), _STEPS)
            except UserError as error:
                if "meta tensor" in str(error):
                    raise UserError("it is made from the weights, which are not loaded here", where=kind) from error
                raise
        return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
