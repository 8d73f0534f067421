"""What evaluation is given and hands back: the rows, the recipe's wishes, the result of one task under one metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

StatisticName = Literal["mean", "perplexity"]


class Item(Protocol):
    """One row to evaluate on; ``T`` is its number of tokens."""

    @property
    def input_ids(self) -> Sequence[int]:
        """Token ids of the whole example, length ``T``."""

    @property
    def trained(self) -> Sequence[bool]:
        """Which tokens carry loss, length ``T``; perplexity counts these and no others."""

    @property
    def prompt_ids(self) -> Sequence[int]:
        """Token ids that generation starts from, the template's generation prompt included."""

    @property
    def prompt_text(self) -> str:
        """The prompt as shown to people."""

    @property
    def reference(self) -> str:
        """The answer that the data holds."""

    @property
    def where(self) -> str:
        """``file:line`` of the row."""


@dataclass(frozen=True)
class EvalItem:
    """An `Item` made of plain values."""

    input_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    prompt_ids: tuple[int, ...]
    prompt_text: str
    reference: str
    where: str


class Spec(Protocol):
    """The part of the recipe's ``eval`` block that evaluation reads."""

    @property
    def generate(self) -> bool:
        """Whether answers are generated and scored, beside perplexity."""

    @property
    def max_new_tokens(self) -> int:
        """The longest answer, in tokens."""

    @property
    def metrics(self) -> Sequence[str]:
        """Names of the metrics that score the answers."""

    @property
    def limit(self) -> int | None:
        """At most this many rows, drawn once and for all; None for all rows."""

    @property
    def batch_size(self) -> int:
        """Rows a batch, at most."""


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One task under one metric; everything that has one entry a row is in the order of ``items``.

    Args:
        name: the task.
        metric: the metric.
        higher_is_better: which way is up.
        statistic: how rows become one number: ``mean`` is sum(values) / sum(weights), ``perplexity`` its exponential.
        values: a total per row: the score, or the negative log-likelihood in nats summed over the counted tokens.
        weights: what the total is a total of: 1 for a score, the number of counted tokens for a likelihood.
            Rows of weight 0 do not count.
        items: the rows evaluated.
        texts: what was generated; empty when nothing was.
        seconds: wall time of the task, all its metrics together.
    """

    name: str
    metric: str
    higher_is_better: bool
    statistic: StatisticName
    values: tuple[float, ...]
    weights: tuple[float, ...]
    items: tuple[Item, ...]
    texts: tuple[str, ...] = ()
    seconds: float = 0.0

    def __post_init__(self) -> None:
        counts = (len(self.values), len(self.weights), len(self.items))
        assert len(set(counts)) == 1 and len(self.texts) in (0, counts[0]), (counts, len(self.texts))
