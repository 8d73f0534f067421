"""A model that scores conversations: found and verified, loaded, and asked in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import DataError
from tunekit.core.types import Example, Message, RowError
from tunekit.data.encode import RowEncoder
from tunekit.data.render import Renderer
from tunekit.evaluate.batches import batches
from tunekit.evaluate.mode import plain_model
from tunekit.evaluate.scorer import last_scores
from tunekit.model import heads, restore
from tunekit.model.device import device_of
from tunekit.model.names import resolve_name
from tunekit.model.quiet import hushed
from tunekit.model.restore import Artefact
from tunekit.model.tokenizer import hub_errors, load_tokenizer
from tunekit.recipe.schema import ModelBlock

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = Sequence[Message] | str
"""Turns, or a plain text."""


def find(place: Path | ModelBlock) -> Artefact:
    """The reward model of a run, in a folder, or on the Hub; files are compared with their manifest, no weights loaded.

    Raises:
        UserError: nothing to load there, or a model that does not score with one number.
        MachineError: files that are missing or not as they were saved, or the Hub cannot be reached.
    """
    if isinstance(place, Path):
        found = restore.find(place)
    else:
        found = Artefact(Path(), None, None, place)
        _ = tokenizer_of(found)  # what cannot be reached is told in its words
    heads.check_scores(found)
    return found


def tokenizer_of(found: Artefact) -> PreTrainedTokenizerBase:
    """The tokenizer of a reward model, with its chat template.

    Raises:
        UserError, MachineError: it cannot be loaded.
    """
    if found.base is not None and found.adapter is None:
        return load_tokenizer(found.base)
    with hub_errors(resolve_name(found.base.name if found.base else str(found.folder))):
        return restore.load_tokenizer(found)


@dataclass(frozen=True)
class RewardModel:
    """A model with a head of one number, in float32 and in evaluation mode."""

    model: Any
    renderer: Renderer
    encoder: RowEncoder

    @classmethod
    def load(cls, place: Path | ModelBlock, *, device: str = "auto") -> RewardModel:
        """Loads the reward model of a run, in a folder, or of the Hub.

        Args:
            place: a run's folder, a whole model's or an adapter's; or a Hub id.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

        Raises:
            UserError: as `find`; or the adapter's base is not that of the training.
            MachineError: files that are missing or not as they were saved, or no such device.
        """
        where = device_of(device)
        found = find(place)
        tokenizer = tokenizer_of(found)
        with hushed():
            model: Any = heads.load_scorer(found, dtype="float32")
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
        core = plain_model(self.model)
        with torch.inference_mode():
            for batch in batches([len(row) for row in rows], rows=batch_size):
                values = last_scores(core, [rows[index] for index in batch])
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
        positions = getattr(plain_model(self.model).config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and len(ids) > positions:
            what = f"the conversation has {len(ids)} tokens; the reward model has {positions} positions"
            raise DataError(what, where=where, fix="shorten the longest prompts or answers")
        return ids
