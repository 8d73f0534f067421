"""Values: what an answer is still going to be worth, before each of its tokens.

A linear head reads them from states: the policy's own, or those of a value model that is trained beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import UserError
from tunekit.evaluate.mode import plain_model
from tunekit.rl.rollouts import Rollout

if TYPE_CHECKING:
    import torch

    from tunekit.kernels.label_loss import LabelHead
    from tunekit.kernels.token_logps import TokenLogps

FILE = "values.safetensors"
SHARED, SEPARATE = "shared", "separate"
_HEAD, _MODEL = "value_head", "value_model"
_WHERE = "ppo.value_model"
_OTHERS = f"name a reward model of the policy's kind, or say `{SEPARATE}` or `{SHARED}`"


def add_head(model: Any) -> None:
    """Gives a model a head of values, zero at first; it is trained with the policy, and not saved with the model."""
    _put_head(model, plain_model(model).config.get_text_config().hidden_size)


def _put_head(model: Any, width: int) -> None:
    import torch
    from torch import nn

    plain = plain_model(model)
    head = nn.Linear(width, 1, dtype=torch.float32, device=plain.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    setattr(plain, _HEAD, head)
    plain._keys_to_ignore_on_save = {*(plain._keys_to_ignore_on_save or ()), f"{_HEAD}.weight", f"{_HEAD}.bias"}


@dataclass(frozen=True)
class ValueStates:
    """Stands where a trainer has its `LabelHead`: log-probabilities of the policy, states of its value model.

    Args:
        head: the policy's.
        backbone: the value model without a head. It is no submodule of the policy: whatever walks that, as adapters do
            when they are switched off or saved, must not find it.
    """

    head: LabelHead
    backbone: Any

    def logps(
        self, model: Any, inputs: Mapping[str, Any], keep: torch.Tensor, targets: torch.Tensor, **options: Any
    ) -> TokenLogps:
        """As `LabelHead.logps`; ``hidden`` (L, E) are the value model's."""
        found = self.head.logps(model, inputs, keep, targets, **options)
        states = self.backbone(**inputs, use_cache=False).last_hidden_state
        states = states.reshape(-1, states.shape[-1])[keep]
        # a batch of fillers has a gradient for both models: other ranks wait for it
        return replace(found, hidden=states + found.hidden.sum() * 0)


def add_model(trainer: Any, start: str | Path) -> None:
    """Gives a trainer a value model of its own in place of the head on the policy's states.

    Its weights are parameters of the policy, so that the optimizer, ranks and checkpoints have them. Those that are
    frozen are not copied but shared.

    Args:
        trainer: a `PolicyTrainer` whose model lies on its device, with `add_head`'s head.
        start: `SEPARATE`: as the policy begins, with a head of zeros; or the folder of a reward model, with its head.

    Raises:
        UserError: the reward model reads other tokens or is of another architecture, or nothing would be trained.
        MachineError: its files are not as they were saved.
    """
    import torch
    from torch import nn

    plain, head = plain_model(trainer.model), trainer.head
    weight = None
    if isinstance(start, Path):
        backbone, weight = _scoring(start, plain, trainer.processing_class)
        _put_head(trainer.model, weight.shape[1])
    else:
        frozen = {id(value): value for value in plain.base_model.parameters() if not value.requires_grad}
        backbone = copy.deepcopy(plain.base_model, frozen)
    named = {name: value for name, value in backbone.named_parameters() if value.requires_grad}
    if not named:
        what = "a value model of its own would have nothing to train: the adapter is outside of the layers"
        raise UserError(what, where=_WHERE, fix=_OTHERS)
    checkpointing = trainer.args.gradient_checkpointing
    backbone.train(checkpointing)
    if checkpointing:
        backbone.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    # numbered, for adapters are saved by their names; what has no weight decay is told by its name as well
    decayed = set(trainer.get_decay_parameter_names(backbone))
    names = [f"{at}" if name in decayed else f"{at}_layernorm" for at, name in enumerate(named)]
    setattr(plain, _MODEL, nn.ParameterDict(zip(names, named.values(), strict=True)))
    plain._keys_to_ignore_on_save |= {f"{_MODEL}.{name}" for name in names}
    if weight is not None:
        with torch.no_grad():
            getattr(plain, _HEAD).weight.copy_(weight)
    trainer.head = ValueStates(head, backbone)


@contextmanager
def left_out(trainer: Any) -> Iterator[None]:
    """Inside, a value model of its own is not run: a reference has no values."""
    head = trainer.head
    if isinstance(head, ValueStates):
        trainer.head = head.head
    try:
        yield
    finally:
        trainer.head = head


def _scoring(folder: Path, policy: Any, tokenizer: Any) -> tuple[Any, torch.Tensor]:
    """The layers of a reward model, ready for training beside ``policy``, and the weights (1, E) of its head.

    What was trained there is trained here: of an adapter's base nothing is.
    """
    import torch

    from tunekit.model.heads import HEAD
    from tunekit.rl.groups import without_dropout
    from tunekit.rl.reward_model import RewardModel, find, tokenizer_of

    own, known = tokenizer_of(find(folder)).get_vocab(), tokenizer.get_vocab()
    other = next((token for token, number in known.items() if own.get(token) != number), None)
    if other is not None:
        what = f"the reward model in {folder} reads other tokens than the policy, such as '{other}'"
        raise UserError(what, where=_WHERE, fix=_OTHERS)
    model = RewardModel.load(folder, device="cpu").model
    core = plain_model(model)
    kinds = [each.config.get_text_config().model_type for each in (core, policy)]
    if kinds[0] != kinds[1]:
        what = f"the reward model in {folder} is a {kinds[0]}, the policy a {kinds[1]}: they read texts differently"
        raise UserError(what, where=_WHERE, fix=_OTHERS)
    if core is model:
        model.requires_grad_(True)
    else:
        model.set_adapter(model.active_adapter)
    without_dropout(model)
    backbone = getattr(core, core.base_model_prefix)
    width = backbone.config.get_text_config().hidden_size
    with torch.no_grad():
        score = getattr(core, HEAD)
        weight = (score(torch.eye(width)) - score(torch.zeros(1, width))).T
    backbone.set_attn_implementation(policy.config._attn_implementation)
    return backbone.to(policy.device), weight


def begin_at(model: Any, mean: float, rollouts: Sequence[Rollout]) -> None:
    """Shifts a fresh head, and the values that it gave, so that these have the mean reward of the first answers.

    From 0 the first errors would be as large as the rewards are far from it, and through the policy's own states they
    would move the policy too.
    """
    head = getattr(plain_model(model), _HEAD, None)
    if head is None:
        return
    answers = [drawn.numbers for rollout in rollouts for drawn in rollout.answers]
    shift = mean - fmean(value for numbers in answers for value in numbers["values"])
    head.bias.data += shift
    for numbers in answers:
        numbers["values"] = [value + shift for value in numbers["values"]]


def values_of(model: Any, hidden: torch.Tensor) -> torch.Tensor | None:
    """(L,) float32, of the states (L, E); None for a model without the head."""
    import torch

    head = getattr(plain_model(model), _HEAD, None)
    if head is None:
        return None
    with torch.autocast(hidden.device.type, enabled=False):
        found: torch.Tensor = head(hidden.float())[:, 0]
    return found


def save(model: Any, folder: Path) -> None:
    """Writes the head, and the value model, if there are any, into a checkpoint."""
    from safetensors.torch import save_file

    found = _state(model)
    if found:
        save_file({name: value.detach().contiguous() for name, value in found.items()}, folder / FILE)


def load(model: Any, folder: Path) -> None:
    """Takes back what `save` wrote.

    Raises:
        UserError: the checkpoint has values of another kind: the recipe has changed since.
    """
    import torch
    from safetensors.torch import load_file

    own = _state(model)
    if not own:
        return
    kept = load_file(folder / FILE)
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in kept.items()}:
        what = "the checkpoint's values are of another model than the recipe asks for"
        raise UserError(what, where=_WHERE, fix="go on with what the run began with, or start a new run")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(kept[name])


def _state(model: Any) -> dict[str, torch.Tensor]:
    plain = plain_model(model)
    head, beside = getattr(plain, _HEAD, None), getattr(plain, _MODEL, None)
    found: dict[str, torch.Tensor] = dict(head.named_parameters()) if head is not None else {}
    return found | ({f"{_MODEL}.{name}": value for name, value in beside.items()} if beside is not None else {})
