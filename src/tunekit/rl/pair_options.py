"""The numbers of the losses of pairs, and which loss goes by which; light enough for checking a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from tunekit.core.errors import Problem

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


@dataclass(frozen=True)
class PairOptions:
    """Numbers of the losses; `check_losses` says which loss honours which."""

    beta: float = 0.1  # how strongly a log-ratio counts; in ORPO the weight of the odds ratio
    label_smoothing: float = 0.0  # the share of pairs whose order is thought wrong
    divergence: Divergence = "reverse_kl"  # what holds the policy to the reference (arXiv 2309.16240)
    alpha: float = 0.5  # of the alpha divergence; 1 is the reverse KL
    margin: float = 0.0  # reward margin asked for, times the pair's own margin (offset DPO, arXiv 2402.10571)
    gamma: float = 0.0  # reward margin asked for of every pair (SimPO)
    nll_weight: float = 0.0  # of the better answer's negative log-likelihood (CPO)
    reward_alpha: float = 0.0  # of AlphaPO's reward (1 - p ** -alpha) / alpha (arXiv 2501.03884); 0 is log p
    tau: float = 0.05  # temperature of DiscoPOP


_SCORED = ("reference", "beta", "divergence", "alpha")
_FREE = ("beta", "margin", "nll_weight", "reward_alpha")
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


def check_losses(names: Sequence[str], options: PairOptions) -> list[Problem]:
    """What none of these losses would honour of the options, and what a loss cannot be computed with."""
    honoured = frozenset[str]().union(*(HONOURED[name] for name in names))
    changed = [field.name for field in fields(options) if getattr(options, field.name) != field.default]
    unused = [name for name in changed if name not in honoured]
    what = f"means nothing to the loss {', '.join(names)}"
    found = [Problem(f"{name} {what}", fix=f"leave {name} out") for name in unused]
    wrong = options.label_smoothing
    if "exo_pair" in names and not 0 < wrong < 1:
        found.append(Problem("exo_pair needs label_smoothing above 0 and below 1", fix="set it, 0.001 for example"))
    if "robust" in names and not 0 <= wrong < 0.5:
        found.append(Problem("robust needs label_smoothing from 0 to below 0.5", fix="set the share of wrong pairs"))
    return found
