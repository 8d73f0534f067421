"""An engine around a reward model in memory: it scores conversations, and writes nothing.

Shapes: ``B`` rows of a batch, ``T`` tokens of the longest, ``E`` width of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from tunekit.core.errors import UserError
from tunekit.core.progress import Screen
from tunekit.evaluate.batches import batches, check_lengths
from tunekit.evaluate.contract import Conversation, Generated, Likelihood, Prompt, Score, Scored
from tunekit.evaluate.mode import evaluating, plain_model

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ScoringEngine:
    """Scores conversations at their last token; the model's modes and the random states are as before afterwards.

    Args:
        model: of transformers, for sequence classification with one number, or a PEFT model around one.
        tokenizer: the model's.
        batch_size: rows a batch, at most.
        batch_tokens: padded tokens a batch, at most; a longer row is a batch of its own.
    """

    model: Any
    tokenizer: Any
    batch_size: int = 32
    batch_tokens: int = 4096

    @property
    def positions(self) -> int | None:
        """How many positions the model knows; None for a kind of model that has no such bound."""
        config = plain_model(self.model).config.get_text_config()
        known: int | None = getattr(config, "max_position_embeddings", None)
        return known

    def scores(
        self,
        requests: Sequence[Conversation],
        screen: Screen,
        what: str,
        done: Callable[[int, Score], None] = lambda index, answer: None,
    ) -> list[Score]:
        """Scores conversations. A score that is nan stays nan.

        Raises:
            DataError: one is longer than the model's positions.
        """
        lengths = [len(request.ids) for request in requests]
        check_lengths(lengths, self.positions)
        found: dict[int, Score] = {}
        with evaluating(self.model), screen.step(what, len(requests), "answers") as step:
            for batch in batches(lengths, rows=self.batch_size, tokens=self.batch_tokens):
                values = last_scores(plain_model(self.model), [requests[index].ids for index in batch])
                for index, value in zip(batch, values, strict=True):
                    found[index] = Score(value, lengths[index])
                    done(index, found[index])
                step.advance(len(batch))
        return [found[index] for index in range(len(requests))]

    def likelihoods(
        self,
        requests: Sequence[Likelihood],
        screen: Screen,
        what: str,
        done: Callable[[int, Scored], None] = lambda index, answer: None,
    ) -> list[Scored]:
        """Refuses them.

        Raises:
            UserError: always.
        """
        _refuse(what, "likelihoods")

    def generate(
        self,
        requests: Sequence[Prompt],
        screen: Screen,
        what: str,
        done: Callable[[int, Generated], None] = lambda index, answer: None,
    ) -> list[Generated]:
        """Refuses them.

        Raises:
            UserError: always.
        """
        _refuse(what, "text")


def last_scores(model: Any, rows: Sequence[Sequence[int]]) -> list[float]:
    """The head's number at the last token of each of B rows, padded on the right, where no token sees it.

    By hand and not by the model's own forward pass, which looks for the last token that is not the pad token: where
    that ends a turn as well, it would be another one.
    """
    import torch

    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)  # (B, T)
    mask = (torch.arange(ids.shape[1])[None, :] < lengths[:, None]).long()
    device: torch.device = model.device
    inner = getattr(model, model.base_model_prefix)
    hidden = inner(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).last_hidden_state
    last = hidden[torch.arange(len(rows), device=device), (lengths - 1).to(device)]  # (B, E)
    values: list[float] = model.score(last).float()[:, 0].tolist()
    return values


def _refuse(what: str, kind: str) -> NoReturn:
    fix = "name a model that writes, or the task preference"
    raise UserError(f"{what} asks for {kind}, and a reward model gives scores alone", fix=fix)
