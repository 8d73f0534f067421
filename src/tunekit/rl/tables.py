"""Batches of answers with numbers for each token, and those numbers as tables of answers by tokens.

Shapes: ``B`` groups, ``S`` answers, ``T`` tokens of the longest, ``L`` tokens of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.rl.rollouts import EACH

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Table:
    """Where the tokens of a batch stand in a table, right-padded.

    Args:
        mask: (S, T) where there is a token.
        owner: (L,) the row of each token.
        place: (L,) its column.
    """

    mask: torch.Tensor
    owner: torch.Tensor
    place: torch.Tensor

    @classmethod
    def of(cls, owner: torch.Tensor, size: int) -> Table:
        """The table of tokens whose answers (L,) are given; those of an answer stand in their order.

        Args:
            owner: the answer of each token.
            size: S, the number of answers.
        """
        import torch

        counts = torch.bincount(owner, minlength=size)
        order = torch.sort(owner, stable=True).indices
        starts = counts.cumsum(0) - counts
        place = torch.empty_like(owner)
        place[order] = torch.arange(len(owner), device=owner.device) - starts[owner[order]]
        width = int(counts.max()) if size else 0
        mask = torch.arange(width, device=owner.device)[None] < counts[:, None]
        return cls(mask, owner, place)

    def of_tokens(self, values: torch.Tensor) -> torch.Tensor:
        """(L,) -> (S, T); 0 where there is no token."""
        return values.new_zeros(self.mask.shape).index_put((self.owner, self.place), values)

    def of_groups(self, values: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """Numbers (B, N) of groups, those of their answers one after another, as (S, T).

        Args:
            values: right-padded.
            sizes: (B,) how many of a group's numbers there are.
        """
        import torch

        there = torch.arange(values.shape[1], device=values.device)[None] < sizes[:, None]
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values[there])

    def rows(self, values: torch.Tensor) -> list[list[float]]:
        """(S, T) as a list for each answer."""
        counts = self.mask.sum(1).tolist()
        return [row[:count] for row, count in zip(values.tolist(), counts, strict=True)]


def numbers_of(examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """The columns of a batch that rollouts add: ``index`` (B,) of the prompt, and numbers (B, N) by name."""
    import torch

    given = [example.get("numbers") or {} for example in examples]
    found = {"index": torch.tensor([int(example.get("index", -1)) for example in examples])}
    widest = max((len(values) for numbers in given for values in numbers.values()), default=0)
    for name in EACH:
        if any(name in numbers for numbers in given):
            rows = [list(numbers.get(name, ())) for numbers in given]
            found[name] = torch.tensor([row + [0.0] * (widest - len(row)) for row in rows])
    return found
