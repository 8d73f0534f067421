"""A model that scores conversations: found and verified, loaded, and asked in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import DataError, MachineError, UserError
from tunekit.core.types import Example, Message, RowError
from tunekit.data.encode import RowEncoder
from tunekit.data.render import Renderer
from tunekit.evaluate.batches import batches
from tunekit.model import restore
from tunekit.model.artefact import check_base, fresh_base
from tunekit.model.names import resolve_name
from tunekit.model.quiet import hushed
from tunekit.model.restore import ADAPTER_WEIGHTS, Artefact
from tunekit.model.tokenizer import embedding_rows, hub_errors, load_config
from tunekit.recipe.schema import ModelBlock

if TYPE_CHECKING:
    import torch

HEAD = "score"
"""What transformers calls the head of a decoder that scores."""
_KIND = "ForSequenceClassification"
_TRAIN = "train one with `tunekit reward`, and name its run"

Conversation = Sequence[Message] | str
"""Turns, or a plain text."""


def find(place: Path) -> Artefact:
    """The reward model of a run, or in a folder; every file is compared with its manifest, no weights are loaded.

    Raises:
        UserError: nothing to load there, or a model that does not score with one number.
        MachineError: files that are missing or not as they were saved.
    """
    found = restore.find(place)
    if found.adapter is None:
        _check_whole(found.folder)
        return found
    task = found.adapter.get("task_type")
    if task != "SEQ_CLS":
        raise _headless(f"the {found.kind_word} adapter (task {task})", found.folder)
    if found.adapter.get("num_virtual_tokens"):
        what = f"the {found.kind_word} adapter puts tokens before a conversation, which no reward model here does"
        raise UserError(what, where=str(found.folder), fix="train with another adapter, such as lora")
    if f".{HEAD}." not in "".join(f".{name}" for name in _tensors(found.folder / ADAPTER_WEIGHTS)):
        raise _headless(f"the {found.kind_word} adapter", found.folder)
    return found


def device_of(name: str) -> torch.device:
    """Where a model is to lie; ``auto``: on a GPU where there is one.

    Raises:
        MachineError: the device is not there.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, is_there in there.items() if is_there))
    if not there[name]:
        raise MachineError(f"there is no device '{name}' here", fix="device: auto")
    return torch.device(name)


@dataclass(frozen=True)
class RewardModel:
    """A model with a head of one number, in float32 and in evaluation mode."""

    model: Any
    renderer: Renderer
    encoder: RowEncoder

    @classmethod
    def load(cls, place: Path, *, device: str = "auto") -> RewardModel:
        """Loads the reward model of a run, or in a folder.

        Args:
            place: a run's folder, a whole model's or an adapter's.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

        Raises:
            UserError: as `find`; or the adapter's base is not that of the training.
            MachineError: files that are missing or not as they were saved, or no such device.
        """
        where = device_of(device)
        found = find(place)
        with hub_errors(resolve_name(found.base.name if found.base else str(found.folder))):
            tokenizer = restore.load_tokenizer(found)
        with hushed():
            model = _whole(str(found.folder)) if found.base is None else restore.attach(_base(found), found)
        return cls(model.eval().requires_grad_(False).to(where), Renderer(tokenizer), RowEncoder(tokenizer))

    def scores(
        self, conversations: Sequence[Conversation], batch_size: int = 16, *, places: Sequence[str] = ()
    ) -> list[float]:
        """The score of each conversation: what the head says at the last token of the rendered text.

        Args:
            conversations: N, each with its answer.
            batch_size: conversations a forward pass, at most; those of like length go together.
            places: N, ``file:line`` for messages; may be left out.

        Raises:
            DataError: the template refuses a conversation, or it does not fit the model's positions.
            UserError: the tokenizer has no chat template.
        """
        import torch

        where = places or [f"conversation {number}" for number in range(1, len(conversations) + 1)]
        rows = [self._ids(conversation, place) for conversation, place in zip(conversations, where, strict=True)]
        found = [0.0] * len(rows)
        core = _core(self.model)
        with torch.inference_mode():
            for batch in batches([len(row) for row in rows], rows=batch_size):
                values = _scored(core, [rows[index] for index in batch], self.model.device)
                for index, value in zip(batch, values, strict=True):
                    found[index] = value
        return found

    def _ids(self, conversation: Conversation, where: str) -> tuple[int, ...]:
        if isinstance(conversation, str):
            example = Example(text=conversation)
        else:
            example = Example(tuple(conversation))
        try:
            ids = self.encoder.encode([self.renderer.render(example)])[0].input_ids
        except RowError as error:
            raise DataError(f"the reward model's template refuses it: {error}", where=where) from error
        positions = getattr(_core(self.model).config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and len(ids) > positions:
            what = f"the conversation has {len(ids)} tokens; the reward model has {positions} positions"
            raise DataError(what, where=where, fix="shorten the longest prompts or answers")
        return ids


def _scored(core: Any, rows: Sequence[tuple[int, ...]], device: torch.device) -> list[float]:
    """The scores of B rows, padded on the right to T tokens.

    By hand and not by the model's own forward pass, which looks for the last token that is not the pad token: where
    that ends a turn as well, it would be another one.
    """
    import torch

    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)  # (B, T)
    mask = torch.arange(ids.shape[1])[None, :] < lengths[:, None]
    hidden = getattr(core, core.base_model_prefix)(
        input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False
    ).last_hidden_state  # (B, T, E)
    last = hidden[torch.arange(len(rows), device=device), (lengths - 1).to(device)]
    values: list[float] = getattr(core, HEAD)(last).float()[:, 0].tolist()
    return values


def _core(model: Any) -> Any:
    """The model of transformers, with an adapter's layers in it."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def _headless(whose: str, place: Path) -> UserError:
    return UserError(f"{whose} has no head that scores: it is no reward model", where=str(place), fix=_TRAIN)


def _check_whole(folder: Path) -> None:
    config = load_config(ModelBlock(name=str(folder)))
    name = (config.architectures or [type(config).__name__.removesuffix("Config")])[0]
    if not name.endswith(_KIND):
        raise _headless(f"the model ({name})", folder)
    if config.num_labels != 1:
        what = f"the model ({name}) gives {config.num_labels} numbers, and a reward is one"
        raise UserError(what, where=str(folder), fix=_TRAIN)


def _tensors(path: Path) -> list[str]:
    """The names in a file of weights; none where there is no such file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return []
    try:
        with safe_open(str(path), "pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise MachineError(f"the weights cannot be read: {error}", where=str(path), fix="save them again") from error


def _whole(location: str, revision: str | None = None, *, new_head: bool = False) -> Any:
    """A model with a head of one number.

    Args:
        location: folder or Hub id.
        revision: of the Hub id.
        new_head: it may have none yet, because an adapter brings it.

    Raises:
        UserError: it has no such head, or one that is not a decoder's.
        MachineError: weights are missing.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    model, info = AutoModelForSequenceClassification.from_pretrained(
        location, revision=revision, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, num_labels=1,
        output_loading_info=True,
    )  # fmt: skip
    _check_head(model, location)
    missing = {name for name in info["missing_keys"] if not (new_head and name.startswith(f"{HEAD}."))}
    if any(name.startswith(f"{HEAD}.") for name in missing):
        raise _headless(f"the model ({type(model).__name__})", Path(location))
    if missing:
        fix = "save the model again, or fetch it again"
        raise MachineError(f"the weights lack the tensor '{min(missing)}'", where=location, fix=fix)
    return model


def _check_head(model: Any, place: str) -> None:
    if not hasattr(model, HEAD) or not hasattr(model, model.base_model_prefix):
        what = f"a {type(model).__name__} does not score at the last token of a conversation, as decoders do"
        raise UserError(what, where=place, fix=_TRAIN)


def _base(found: Artefact) -> Any:
    """What an adapter belongs on, with as many rows of embeddings as it was trained with; its head is the adapter's."""
    import torch

    assert found.base is not None, found.folder
    check_base(found.base_facts, found.base)
    name = resolve_name(found.base.name)
    if name.random:
        model = _fresh(found)
    else:
        with hub_errors(name):
            model = _whole(name.location, found.base.revision, new_head=True)
    rows, before = (found.manifest or {}).get("rows"), embedding_rows(model.config)
    if rows is not None and rows != before:  # the adapter's file brings what the new ones are
        model.resize_token_embeddings(rows, mean_resizing=False)
        with torch.no_grad():
            model.get_input_embeddings().weight[before:] = 0
    return model


def _fresh(found: Artefact) -> Any:
    """A base of random weights: those of the language model of the same seed, without its head."""
    from transformers import AutoModelForSequenceClassification

    assert found.base is not None, found.folder
    facts = found.base_facts
    made = fresh_base(found.base, seed=facts.get("seed") or 0, dtype=facts.get("dtype") or "float32").float()
    config = load_config(found.base)
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config)
    _check_head(model, found.base.name)
    getattr(model, model.base_model_prefix).load_state_dict(made.base_model.state_dict())
    return model
