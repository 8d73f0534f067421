"""What a run's record says of the merges that were made of its adapter."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class MergePart(BaseModel):
    """A merge of the run's adapter, compared with the adapter on its base.

    ``positions`` were compared in ``dtype``; ``mean_kl`` in nats; ``perplexity`` of base, adapter and merged model;
    ``same_texts`` of ``texts`` greedy texts are the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str
    positions: int
    largest_logit_difference: float
    mean_kl: float
    top1_agreement: float
    perplexity: dict[str, float]
    same_texts: int
    texts: int
