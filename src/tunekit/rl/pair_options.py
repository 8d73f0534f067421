"""The numbers of the losses of pairs, and which loss goes by which; light enough for checking a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


@dataclass(frozen=True)
class PairOptions:
    """Numbers of the losses; `HONOURED` says which loss goes by which."""

    beta: float = 0.1  # how strongly a log-ratio counts; in ORPO the weight of the odds ratio
    label_smoothing: float = 0.0  # the share of pairs whose order is thought wrong
    divergence: Divergence = "reverse_kl"  # what holds the policy to the reference (arXiv 2309.16240)
    alpha: float = 0.5  # of the alpha divergence; 1 is the reverse KL
    margin: float = 0.0  # reward margin asked for, times the pair's own margin (offset DPO, arXiv 2402.10571)
    gamma: float = 0.0  # reward margin asked for of every pair (SimPO)
    nll_weight: float = 0.0  # of the better answer's negative log-likelihood (CPO)
    tau: float = 0.05  # temperature of DiscoPOP


_SCORED = ("reference", "beta", "divergence", "alpha")
_FREE = ("beta", "nll_weight")
HONOURED: dict[str, tuple[str, ...]] = {
    "sigmoid": (*_SCORED, "label_smoothing", "margin"),
    "hinge": (*_SCORED, "margin"),
    "ipo": (*_SCORED,),
    "exo_pair": (*_SCORED, "label_smoothing", "margin"),
    "nca_pair": ("reference", "beta"),
    "robust": (*_SCORED, "label_smoothing", "margin"),
    "bco_pair": ("reference", "beta"),
    "sppo_hard": ("reference", "beta"),
    "aot": ("reference", "beta", "label_smoothing"),
    "aot_unpaired": ("reference", "beta", "label_smoothing"),
    "apo_zero": ("reference", "beta"),
    "apo_down": ("reference", "beta"),
    "discopop": (*_SCORED, "tau", "margin"),
    "sigmoid_norm": (*_SCORED, "label_smoothing", "margin"),
    "cpo": (*_FREE, "label_smoothing"),
    "cpo_hinge": (*_FREE,),
    "simpo": (*_FREE, "label_smoothing", "gamma"),
    "orpo": ("beta",),
    "sft": (),
}
"""Which of `PairOptions` each loss goes by; ``reference`` where it needs the reference model's log-probabilities."""
NOT_OF_PAIRS = ("aot", "aot_unpaired", "sft")
"""Losses that are none of single pairs: margins in order of size belong to no pair, a likelihood to one answer."""


def honoured_by(names: Iterable[str]) -> frozenset[str]:
    """What any of these losses goes by."""
    return frozenset[str]().union(*(HONOURED[name] for name in names))


def unused_by(names: Iterable[str]) -> frozenset[str]:
    """Options, and ``reference``, that none of these losses goes by."""
    return frozenset({"reference", *(field.name for field in fields(PairOptions))}) - honoured_by(names)
