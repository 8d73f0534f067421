"""Losses of a better and a worse answer: DPO and its kin, CPO, SimPO, ORPO, and the reward model's.

Every loss is a function of the answers' log-probabilities, one value a pair. ``B`` pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from tunekit.rl.pair_options import Divergence, PairOptions

_EXPONENT = 80.0  # the largest that is taken: exp(80) is still a float32


@dataclass(frozen=True)
class PairLogps:
    """What the losses are of: log-probabilities (B,), in nats, summed over each answer's tokens.

    Args:
        chosen, rejected: the policy's, of the better and of the worse answers, with gradient.
        chosen_tokens, rejected_tokens: (B,) how many tokens each sum is over.
        reference_chosen, reference_rejected: the reference model's; None without one.
        margin: (B,) by how much the better answer is better; finite.
        mean_chosen_tokens: () tokens of a better answer, on average over the global batch; over these pairs when None.
        whole: (B,) plain sums of the better answers, where not every token counts fully in ``chosen`` (LD-DPO).
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor
    reference_chosen: torch.Tensor | None = None
    reference_rejected: torch.Tensor | None = None
    margin: torch.Tensor | None = None
    mean_chosen_tokens: torch.Tensor | None = None
    whole: torch.Tensor | None = None

    def ratios(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Log of policy over reference, of both answers (B,)."""
        assert self.reference_chosen is not None and self.reference_rejected is not None, "a loss with a reference"
        return self.chosen - self.reference_chosen, self.rejected - self.reference_rejected

    def averaged(self, chosen: torch.Tensor, rejected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values (B,) of both answers, by the token."""
        return chosen / self.chosen_tokens.clamp(min=1), rejected / self.rejected_tokens.clamp(min=1)

    def nll(self) -> torch.Tensor:
        """Negative log-likelihood of the better answers (B,), so scaled that its mean is the mean over their tokens."""
        tokens = self.mean_chosen_tokens
        tokens = self.chosen_tokens.to(self.chosen.dtype).mean() if tokens is None else tokens
        return -(self.chosen if self.whole is None else self.whole) / tokens.clamp(min=1)


Loss = Callable[[PairLogps, PairOptions], torch.Tensor]
PAIR_LOSSES: dict[str, Loss] = {}
"""Losses by name: one value (B,) a pair, of which the mean is trained."""


def _named(name: str) -> Callable[[Loss], Loss]:
    def enter(loss: Loss) -> Loss:
        PAIR_LOSSES[name] = loss
        return loss

    return enter


def divergence_scores(ratios: torch.Tensor, kind: Divergence, alpha: float) -> torch.Tensor:
    """f'(t) of log t = ``ratios`` (any shape), less a constant (arXiv 2309.16240, table 1).

    Exponents are held at 80, where the gradient is zero.
    """
    if kind == "forward_kl":
        return -torch.expm1((-ratios).clamp(max=_EXPONENT))
    if kind == "js":
        return math.log(2) + logsigmoid(ratios)
    if kind == "alpha" and abs(alpha - 1) >= 1e-6:
        return torch.expm1(((alpha - 1) * ratios).clamp(max=_EXPONENT)) / (alpha - 1)
    return ratios


def _scores(pairs: PairLogps, options: PairOptions) -> tuple[torch.Tensor, torch.Tensor]:
    chosen, rejected = (divergence_scores(x, options.divergence, options.alpha) for x in pairs.ratios())
    return chosen, rejected


def _offset(pairs: PairLogps, options: PairOptions) -> torch.Tensor | float:
    """The reward margin asked for of each pair."""
    return 0.0 if pairs.margin is None or not options.margin else options.margin * pairs.margin


def _logits(pairs: PairLogps, options: PairOptions) -> torch.Tensor:
    chosen, rejected = _scores(pairs, options)
    return options.beta * (chosen - rejected) - _offset(pairs, options)


def _logistic(logits: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Cross-entropy of the order, of which a share ``smoothing`` is thought wrong."""
    return -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)


@_named("sigmoid")  # DPO (arXiv 2305.18290), conservative when smoothed
def _sigmoid(pairs: PairLogps, options: PairOptions) -> torch.Tensor:
    return _logistic(_logits(pairs, options), options.label_smoothing)


@_named("hinge")  # SLiC's hinge on DPO's rewards (arXiv 2305.10425, 2309.06657)
def _hinge(pairs: PairLogps, options: PairOptions) -> torch.Tensor:
    return torch.relu(1 - _logits(pairs, options))


@_named("ipo")  # IPO (arXiv 2310.12036, eq. 17), on averages over tokens
def _ipo(pairs: PairLogps, options: PairOptions) -> torch.Tensor:
    chosen, rejected = pairs.averaged(*_scores(pairs, options))
    return (chosen - rejected - 1 / (2 * options.beta)).square()


@_named("exo_pair")  # EXO (arXiv 2402.00856, eq. 16)
def _exo_pair(pairs: PairLogps, options: PairOptions) -> torch.Tensor:
    # KL of the policy's order from the labels', which must not be certain
    logits, wrong = _logits(pairs, options), options.label_smoothing
    right_part = torch.sigmoid(logits) * (logsigmoid(logits) - math.log1p(-wrong))
    return right_part + torch.sigmoid(-logits) * (logsigmoid(-logits) - math.log(wrong))


@_named("nca_pair")  # NCA (arXiv 2402.05369)
def _nca_pair(pairs: PairLogps, options: PairOptions) -> torch.Tensor:
    chosen, rejected = (options.beta * ratio for ratio in pairs.ratios())
    return -logsigmoid(chosen) - (logsigmoid(-chosen) + logsigmoid(-rejected)) / 2


@_named("robust")  # Robust DPO (arXiv 2403.00409)
def _robust(pairs: PairLogps, options: PairOptions) -> torch.Tensor:
    logits, wrong = _logits(pairs, options), options.label_smoothing
    return (wrong * logsigmoid(-logits) - (1 - wrong) * logsigmoid(logits)) / (1 - 2 * wrong)


@_named("bco_pair")  # BCO of pairs, without a reward shift (arXiv 2404.04656)
def _bco_pair(pairs: PairLogps, options: PairOptions) -> torch.Tensor:
    chosen, rejected = pairs.ratios()
    return -logsigmoid(options.beta * chosen) - logsigmoid(-options.beta * rejected)


@_named("sppo_hard")  # SPPO with certain preferences (arXiv 2405.00675, eq. 4.7)
def _sppo_hard(pairs: PairLogps, options: PairOptions) -> torch.Tensor:
    chosen, rejected = pairs.ratios()
    return (chosen - 0.5 / options.beta).square() + (rejected + 0.5 / options.beta).square()


@_named("aot")  # AOT of pairs (arXiv 2406.05882)
def _aot(pairs: PairLogps, options: PairOptions) -> torch.Tensor:
    assert pairs.reference_chosen is not None and pairs.reference_rejected is not None, "a loss with a reference"
    # margins of both, each in order of size: the i-th value belongs to ranks, not to a pair
    policy = (pairs.chosen - pairs.rejected).sort().values
    reference = (pairs.reference_chosen - pairs.reference_rejected).sort().values
    return _logistic(options.beta * (policy - reference), options.label_smoothing)


@_named("aot_unpaired")  # AOT without pairs (arXiv 2406.05882)
def _aot_unpaired(pairs: PairLogps, options: PairOptions) -> torch.Tensor:
    chosen, rejected = (ratio.sort().values for ratio in pairs.ratios())
    return _logistic(options.beta * (chosen - rejected), options.label_smoothing)


@_named("apo_zero")  # APO-zero (arXiv 2408.06266, eq. 7): better answers up, worse ones down
def _apo_zero(pairs: PairLogps, options: PairOptions) -> torch.Tensor:
    chosen, rejected = pairs.ratios()
    return torch.sigmoid(-options.beta * chosen) + torch.sigmoid(options.beta * rejected)


@_named("apo_down")  # APO-down (arXiv 2408.06266, eq. 8): both down, worse ones further
def _apo_down(pairs: PairLogps, options: PairOptions) -> torch.Tensor:
    chosen, rejected = pairs.ratios()
    return torch.sigmoid(options.beta * chosen) + torch.sigmoid(options.beta * (rejected - chosen))


@_named("discopop")  # DiscoPOP (arXiv 2406.08414, eq. 5)
def _discopop(pairs: PairLogps, options: PairOptions) -> torch.Tensor:
    logits = _logits(pairs, options)
    share = torch.sigmoid(logits / options.tau)
    return (1 - share) * -logsigmoid(logits) + share * torch.exp(-logits)


_named("sft")(lambda pairs, options: pairs.nll())  # to be mixed in


@_named("sigmoid_norm")  # DPO on averages over tokens (arXiv 2411.15124)
def _sigmoid_norm(pairs: PairLogps, options: PairOptions) -> torch.Tensor:
    chosen, rejected = pairs.averaged(*_scores(pairs, options))
    return _logistic(options.beta * (chosen - rejected) - _offset(pairs, options), options.label_smoothing)


def _free_logits(pairs: PairLogps, options: PairOptions, averaged: bool = False) -> torch.Tensor:
    """Reward margins without a reference."""
    rewards = (pairs.chosen, pairs.rejected)
    chosen, rejected = pairs.averaged(*rewards) if averaged else rewards
    return options.beta * (chosen - rejected)


@_named("cpo")  # CPO (arXiv 2401.08417)
def _cpo(pairs: PairLogps, options: PairOptions) -> torch.Tensor:
    return _logistic(_free_logits(pairs, options), options.label_smoothing) + options.nll_weight * pairs.nll()


@_named("cpo_hinge")  # SLiC-HF (arXiv 2305.10425) with CPO's likelihood term
def _cpo_hinge(pairs: PairLogps, options: PairOptions) -> torch.Tensor:
    return torch.relu(1 - _free_logits(pairs, options)) + options.nll_weight * pairs.nll()


@_named("simpo")  # SimPO (arXiv 2405.14734), where asked with CPO's likelihood term
def _simpo(pairs: PairLogps, options: PairOptions) -> torch.Tensor:
    logits = _free_logits(pairs, options, averaged=True) - options.gamma
    return _logistic(logits, options.label_smoothing) + options.nll_weight * pairs.nll()


@_named("orpo")  # ORPO (arXiv 2403.07691, eq. 6 and 7), on averages over tokens
def _orpo(pairs: PairLogps, options: PairOptions) -> torch.Tensor:
    # a certain answer has no odds
    chosen, rejected = (x.clamp(max=-1e-6) for x in pairs.averaged(pairs.chosen, pairs.rejected))
    log_odds = chosen - torch.log(-torch.expm1(chosen)) - rejected + torch.log(-torch.expm1(rejected))
    return pairs.nll() - options.beta * logsigmoid(log_odds)


def mixed(pairs: PairLogps, options: PairOptions, weights: Mapping[str, float]) -> torch.Tensor:
    """Sum (B,) of losses by name, times their weights."""
    return torch.stack([weight * PAIR_LOSSES[name](pairs, options) for name, weight in weights.items()]).sum(0)


def implicit_rewards(pairs: PairLogps, beta: float, *, averaged: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards (B,) that the policy gives both answers, without gradient: beta times the log-ratio.

    Without a reference of the log-probability; by the token where ``averaged``, as SimPO and ORPO have it.
    """
    free = pairs.reference_chosen is None
    chosen, rejected = (pairs.chosen, pairs.rejected) if free else pairs.ratios()
    chosen, rejected = pairs.averaged(chosen, rejected) if averaged else (chosen, rejected)
    return beta * chosen.detach(), beta * rejected.detach()


def bradley_terry(
    chosen: torch.Tensor, rejected: torch.Tensor, margin: torch.Tensor | None = None, centre: float = 0.0
) -> torch.Tensor:
    """A reward model's loss (B,) of the scores (B,) of better and worse answers (arXiv 1706.03741).

    ``margin`` (B,) is the difference asked for (arXiv 2307.09288); ``centre`` weighs the square of the scores' sum,
    which holds their mean at zero (arXiv 2312.09244).
    """
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    return -logsigmoid(difference) + centre * (chosen + rejected).square()
