"""What evaluation is given and hands back: rows, requests to a model and its answers, a task's result under a metric.

Shapes: ``N`` rows, ``C`` columns of totals a row, ``R`` resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tunekit.core.progress import Screen

StatisticName = Literal["mean", "perplexity"]
SumStatistic = Callable[[Any], Any]
"""A corpus-level number from the sums of its rows' totals, over many resamples at once: (R, C) -> (R,), numpy."""


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


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data source as it was read, for tasks that name its columns."""

    values: Mapping[str, Any]
    where: str


@dataclass(frozen=True, slots=True)
class Likelihood:
    """A text of ``T`` tokens, of which some are scored given all that stands before them.

    Args:
        ids: T token ids.
        scored: T flags; the first is False, for the first token has nothing before it. At least one is True.
    """

    ids: tuple[int, ...]
    scored: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """The answer to a `Likelihood`: log-likelihood in nats summed over the scored tokens.

    ``greedy``: whether each scored token is the likeliest in its place.
    """

    value: float
    tokens: int
    greedy: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to go on from.

    Args:
        ids: its token ids, the template's generation prompt included; empty for engines that take text.
        max_new_tokens: the longest answer, in tokens.
        stops: texts that end an answer, beside the model's end tokens; they are not part of it.
        temperature: 0 takes the likeliest token; above, tokens are drawn.
        top_p: draw from the likeliest tokens of this total chance.
        seed: of the draws; the same prompt asked again with another seed is drawn anew.
        messages: the same as a conversation (``role``, ``content``), for engines that take messages.
    """

    ids: tuple[int, ...]
    max_new_tokens: int
    stops: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    messages: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Generated:
    """The answer to a `Prompt`; ``ended``: by an end token or a stop, not by its length."""

    text: str
    tokens: int
    ended: bool


@dataclass(frozen=True, slots=True)
class Conversation:
    """Token ids of a conversation with its answer, as a reward model reads it: the score is that of the last token."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """The answer to a `Conversation`: what a reward model's head says of it; higher is better, 0 means nothing."""

    value: float
    tokens: int


class Engine(Protocol):
    """A model that answers requests, in the order of the requests, whatever order it computes them in.

    It calls ``done`` with a request's index and answer as soon as it is known, so that what is computed can be kept.
    A model that writes has no scores, and a reward model gives nothing else: the other kind of request is refused.
    """

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer (transformers)."""

    @property
    def positions(self) -> int | None:
        """How many tokens the model can read; None when it has no bound."""

    def likelihoods(
        self,
        requests: Sequence[Likelihood],
        screen: Screen,
        what: str,
        done: Callable[[int, Scored], None] = lambda index, answer: None,
    ) -> list[Scored]:
        """Scores texts; ``what`` names the work on the screen."""

    def generate(
        self,
        requests: Sequence[Prompt],
        screen: Screen,
        what: str,
        done: Callable[[int, Generated], None] = lambda index, answer: None,
    ) -> list[Generated]:
        """Answers prompts; ``what`` names the work on the screen."""

    def scores(
        self,
        requests: Sequence[Conversation],
        screen: Screen,
        what: str,
        done: Callable[[int, Score], None] = lambda index, answer: None,
    ) -> list[Score]:
        """Scores conversations; ``what`` names the work on the screen."""


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
        name: the task, as the recipe names it.
        metric: the metric.
        higher_is_better: which way is up.
        statistic: how rows become one number: ``mean`` is sum(values) / sum(weights), ``perplexity`` its exponential.
            A function: applied to the sums of the columns of ``totals``.
        values: a total per row: the score, or the negative log-likelihood in nats summed over the counted tokens. For
            a corpus-level number: what the row shows by itself; nan where it has no number of its own.
        weights: what the total is a total of: 1 for a score, the number of counted tokens for a likelihood.
            Rows of weight 0 do not count.
        items: the rows evaluated.
        texts: what was generated; empty when nothing was.
        seconds: wall time of the task, all its metrics together.
        totals: (N, C) what a corpus-level number is made of; empty for ``mean`` and ``perplexity``.
        note: how the number was made, such as sacreBLEU's signature.
        options: of the metric; None for a number that is the task's own.
    """

    name: str
    metric: str
    higher_is_better: bool
    statistic: StatisticName | SumStatistic
    values: tuple[float, ...]
    weights: tuple[float, ...]
    items: tuple[Any, ...]
    texts: tuple[str, ...] = ()
    seconds: float = 0.0
    totals: tuple[tuple[float, ...], ...] = ()
    note: str = ""
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        counts = (len(self.values), len(self.weights), len(self.items))
        assert len(set(counts)) == 1 and len(self.texts) in (0, counts[0]), (counts, len(self.texts))
        assert len(self.totals) == (counts[0] if callable(self.statistic) else 0), (self.statistic, len(self.totals))
