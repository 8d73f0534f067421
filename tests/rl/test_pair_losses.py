"""Losses of pairs against hand-worked numbers and against TRL's, values and gradients."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tunekit.rl.pair_losses import (
    PAIR_LOSSES,
    PairLogps,
    bradley_terry,
    implicit_rewards,
    mixed,
)
from tunekit.rl.pair_options import HONOURED, PairOptions, unused_by

CPU = torch.device("cpu")
DPO = [name for name in PAIR_LOSSES if name not in ("cpo", "cpo_hinge", "simpo", "orpo")]
MASK = (torch.arange(7) < torch.tensor([7, 3, 4, 1, 5, 5, 2, 6])[:, None]).float()  # four better answers, four worse


def hand(**changes):
    """Log-ratios 1 and -2 of one pair; sums over 4 and 2 tokens."""
    values = {
        "chosen": [-4.0], "rejected": [-6.0], "chosen_tokens": [4], "rejected_tokens": [2],
        "reference_chosen": [-5.0], "reference_rejected": [-4.0],
    }  # fmt: skip
    return PairLogps(**{name: torch.tensor(value) for name, value in (values | changes).items()})


def loss_of(name, pairs=None, **options):
    return PAIR_LOSSES[name](pairs or hand(), PairOptions(**options)).item()


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("sigmoid", {"beta": 0.5}, 0.2014133),  # -log sigmoid(0.5 x (1 + 2)) = log(1 + exp(-1.5))
        # 0.9 x 0.2014133 + 0.1 x log(1 + exp(1.5)) = 0.1812720 + 0.1 x 1.7014133
        ("sigmoid", {"beta": 0.5, "label_smoothing": 0.1}, 0.3514133),
        ("hinge", {"beta": 0.1}, 0.7),  # 1 - 0.1 x 3
        ("hinge", {"beta": 0.5}, 0.0),  # 1 - 1.5 < 0
        ("ipo", {"beta": 0.5}, 0.0625),  # (1 / 4 + 2 / 2 - 1 / (2 x 0.5)) ** 2 = 0.25 ** 2
        ("sigmoid_norm", {"beta": 2.0}, 0.0788897),  # log(1 + exp(-2 x 1.25))
        ("bco_pair", {"beta": 1.0}, 0.4401897),  # log(1 + exp(-1)) + log(1 + exp(-2)) = 0.3132617 + 0.1269280
        ("sppo_hard", {"beta": 0.5}, 1.0),  # (1 - 1) ** 2 + (-2 + 1) ** 2
        ("apo_zero", {"beta": 1.0}, 0.3881443),  # 1 - sigmoid(1) + sigmoid(-2) = 0.2689414 + 0.1192029
        ("apo_down", {"beta": 1.0}, 0.7784845),  # sigmoid(1) + 1 - sigmoid(3) = 0.7310586 + 0.0474259
        ("sft", {}, 1.0),  # 4 nats over 4 tokens
        # averages -1 and -3: log(1 + exp(-(2 x 2 - 1))) = log(1 + exp(-3))
        ("simpo", {"beta": 2.0, "gamma": 1.0}, 0.0485874),
        ("cpo", {"beta": 0.5, "nll_weight": 0.5}, 0.8132617),  # log(1 + exp(-0.5 x 2)) + 0.5 x 1
        # odds exp(-1) / (1 - exp(-1)) = 0.5819767 and exp(-3) / (1 - exp(-3)) = 0.0523957, log of their ratio
        # 2.4076059, log(1 + exp(-2.4076059)) = 0.0862164; 1 + 0.1 x 0.0862164
        ("orpo", {"beta": 0.1}, 1.0086216),
    ],
)
def test_by_hand(name, options, wanted):
    assert loss_of(name, **options) == pytest.approx(wanted, abs=1e-6)


def test_margins_by_hand():
    # offset DPO: log(1 + exp(-(0.5 x 3 - 0.25 x 4))) = log(1 + exp(-0.5))
    pairs = hand(margin=[4.0])
    assert loss_of("sigmoid", pairs, beta=0.5, margin=0.25) == pytest.approx(0.4740770, abs=1e-6)
    assert loss_of("sigmoid", pairs, beta=0.5) == loss_of("sigmoid", beta=0.5)
    assert loss_of("hinge", pairs, beta=0.5, margin=0.25) == pytest.approx(0.5, abs=1e-6)  # 1 - 1.5 + 1


def test_implicit_rewards_by_hand():
    assert [x.item() for x in implicit_rewards(hand(), 0.5)] == [0.5, -1.0]
    free = replace(hand(), reference_chosen=None, reference_rejected=None)
    assert [x.item() for x in implicit_rewards(free, 0.5)] == [-2.0, -3.0]
    assert [x.item() for x in implicit_rewards(free, 0.5, averaged=True)] == [-0.5, -1.5]


def test_a_loss_with_a_reference_refuses_to_go_without():
    free = replace(hand(), reference_chosen=None, reference_rejected=None)
    for name, honoured in HONOURED.items():
        if "reference" in honoured:
            with pytest.raises(AssertionError, match="reference"):
                loss_of(name, free, label_smoothing=0.1)
        else:
            loss_of(name, free)


def test_micro_batches_share_the_likelihood_exactly():
    pairs = tokens(torch.rand(8, 7))
    whole = PAIR_LOSSES["sft"](pairs, PairOptions()).mean()
    mean = pairs.chosen_tokens.mean()
    parts = [
        PairLogps(pairs.chosen[i], pairs.rejected[i], pairs.chosen_tokens[i], pairs.rejected_tokens[i],
                  mean_chosen_tokens=mean)
        for i in (slice(0, 1), slice(1, 4))
    ]  # fmt: skip
    shares = torch.cat([PAIR_LOSSES["sft"](part, PairOptions()) for part in parts])
    assert shares.mean().item() == pytest.approx(whole.item(), abs=1e-6)


def test_far_ratios_and_certain_answers_stay_finite():
    for kind in ("forward_kl", "js", "alpha"):
        chosen = torch.tensor([-500.0, 500.0], requires_grad=True)
        pairs = PairLogps(chosen, -chosen, *[torch.ones(2)] * 2, torch.zeros(2), torch.zeros(2))
        loss = PAIR_LOSSES["sigmoid"](pairs, PairOptions(divergence=kind)).sum()
        assert torch.autograd.grad(loss, chosen)[0].isfinite().all() and not loss.isnan()
    sure = torch.zeros(1, requires_grad=True)
    loss = PAIR_LOSSES["orpo"](PairLogps(sure, sure - 1, torch.ones(1), torch.ones(1)), PairOptions())
    assert loss.isfinite().all() and torch.autograd.grad(loss.sum(), sure)[0].isfinite().all()


def test_what_no_loss_goes_by_is_known():
    assert unused_by(["sigmoid", "sft"]) == {"gamma", "nll_weight", "tau"}
    assert unused_by(["ipo"]) == {"gamma", "nll_weight", "tau", "margin", "label_smoothing"}
    assert unused_by(["sft"]) == {*PairOptions.__dataclass_fields__, "reference"}


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_a_loss_goes_by_what_it_says_and_by_nothing_else(name):
    torch.manual_seed(2)
    pairs = replace(tokens(-3 * torch.rand(8, 7), -3 * torch.rand(8)), margin=torch.rand(4))
    usual = PairOptions(label_smoothing=0.1, divergence="alpha")
    changes = {
        "beta": 0.3, "label_smoothing": 0.2, "divergence": "js", "alpha": 0.2, "margin": 0.5, "gamma": 0.5,
        "nll_weight": 0.5, "tau": 0.5,
    }  # fmt: skip
    before = PAIR_LOSSES[name](pairs, usual)
    moved = {
        option for option, value in changes.items()
        if not torch.equal(before, PAIR_LOSSES[name](pairs, replace(usual, **{option: value})))
    }  # fmt: skip
    assert moved == set(HONOURED[name]) - {"reference"}


def tokens(logps, reference=None):
    """Pairs of log-probabilities (8, T) of tokens."""
    sums, counts = (logps * MASK).sum(1), MASK.sum(1)
    known = (None, None) if reference is None else reference.chunk(2)
    return PairLogps(*sums.chunk(2), *counts.chunk(2), *known)


def same(ours, theirs, leaf):
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(*(torch.autograd.grad(x, leaf)[0] for x in (ours, theirs)), atol=1e-6, rtol=1e-5)


def trl_dpo(logps, reference, names, weights, options):
    """TRL's own code on log-probabilities (8, T) of tokens."""
    from trl.trainer.dpo_trainer import DPOTrainer

    kind = options.divergence + ("_divergence" if options.divergence in ("js", "alpha") else "")
    same_for_all = SimpleNamespace(device=CPU, gather_for_metrics=lambda x: x, gather=lambda x: x)
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=same_for_all, aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type=kind, f_alpha_divergence_coef=options.alpha, loss_types=names,
        loss_weights=weights, beta=options.beta, label_smoothing=options.label_smoothing, use_weighting=False,
        args=SimpleNamespace(discopop_tau=options.tau), _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    empty = torch.zeros_like(MASK)
    outputs = SimpleNamespace(log_probs=logps * MASK, entropy=empty, mean_logits=empty, is_top1=empty.bool())
    mask = torch.cat([torch.zeros(8, 1), MASK], 1)
    chosen, rejected = reference.chunk(2)
    inputs = {"input_ids": mask.long(), "attention_mask": mask, "completion_mask": mask, "ref_chosen_logps": chosen,
              "ref_rejected_logps": rejected}  # fmt: skip
    return DPOTrainer._compute_loss(stub, lambda **_: outputs, inputs, False)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js", "alpha"])
@pytest.mark.parametrize("name", DPO)
def test_dpo_as_trl(name, divergence):
    torch.manual_seed(3)
    logps = (-torch.rand(8, 7)).requires_grad_()
    reference = -torch.rand(8) * MASK.sum(1)
    smooth = 0.0 if name in ("sigmoid", "sigmoid_norm") else 0.1  # TRL smooths nothing there
    options = PairOptions(beta=0.4, label_smoothing=smooth, divergence=divergence, alpha=0.3, tau=0.2)
    ours = PAIR_LOSSES[name](tokens(logps, reference), options).mean()
    same(ours, trl_dpo(logps, reference, [name], [1.0], options), logps)


def test_a_mix_as_trl():
    torch.manual_seed(4)
    logps, reference = (-torch.rand(8, 7)).requires_grad_(), -torch.rand(8) * MASK.sum(1)
    weights = {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}
    ours = mixed(tokens(logps, reference), PairOptions(), weights).mean()
    same(ours, trl_dpo(logps, reference, list(weights), list(weights.values()), PairOptions()), logps)


def trl_free(module, name, logits, labels, **options):
    """TRL's loss without a reference, of logits (8, T, V): the whole way from the model's output."""
    import importlib

    trainer = getattr(importlib.import_module(f"trl.experimental.{module}"), name)
    stub = trainer.__new__(trainer)
    stub.accelerator = SimpleNamespace(device=CPU, gather_for_metrics=lambda x: x)
    stub.__dict__ |= {"is_encoder_decoder": False, "pad_token_id": 0, "padding_value": 0, "aux_loss_enabled": False}
    stub.__dict__ |= options
    batch = {}
    for part, rows in zip(("chosen", "rejected"), labels.chunk(2), strict=True):
        batch |= {f"{part}_labels": rows, f"{part}_input_ids": rows.clamp(min=0),
                  f"{part}_attention_mask": torch.ones_like(rows)}  # fmt: skip
        batch[f"{part}_attention_mask"][:, 1:] = rows[:, 1:] != -100
    return stub.get_batch_loss_metrics(lambda *_, **__: SimpleNamespace(logits=logits), batch)[0]


@pytest.mark.parametrize(
    ("name", "theirs", "options"),
    [
        ("cpo", {"loss_type": "sigmoid"}, {"label_smoothing": 0.1, "nll_weight": 0.7}),
        ("cpo", {"loss_type": "sigmoid"}, {}),
        ("cpo_hinge", {"loss_type": "hinge"}, {"nll_weight": 1.0}),
        ("simpo", {"loss_type": "simpo"}, {"gamma": 0.5, "label_smoothing": 0.1}),
        ("simpo", {"loss_type": "simpo"}, {"gamma": 0.5, "nll_weight": 0.3}),
        ("orpo", None, {}),
    ],
)
def test_losses_without_a_reference_as_trl(name, theirs, options):
    torch.manual_seed(5)
    logits = torch.randn(8, 8, 11, requires_grad=True)
    labels = torch.randint(1, 11, (8, 8))  # the prompt is one token: ORPO's likelihood is of the answer alone, as ours
    labels[:, 1:][MASK == 0], labels[:, 0] = -100, -100
    mine = PairOptions(beta=0.3, **options)
    if theirs is None:
        wanted = trl_free("orpo", "ORPOTrainer", logits, labels, beta=0.3)
    else:
        wanted = trl_free(
            "cpo", "CPOTrainer", logits, labels, beta=0.3, alpha=0.0, simpo_gamma=mine.gamma,
            label_smoothing=mine.label_smoothing, cpo_alpha=mine.nll_weight, **theirs,
        )  # fmt: skip
    logps = logits[:, :-1].log_softmax(-1).gather(2, labels[:, 1:, None].clamp(min=0))[..., 0]
    same(PAIR_LOSSES[name](tokens(logps), mine).mean(), wanted, logits)


def test_reward_models_by_hand():
    # log(1 + exp(-(2 - 0.5))) = 0.2014133;  with margin 1: log(1 + exp(-0.5)) = 0.4740770;  + 0.1 x 2.5 ** 2 = 0.625
    scores = torch.tensor([2.0]), torch.tensor([0.5])
    assert bradley_terry(*scores).item() == pytest.approx(0.2014133, abs=1e-6)
    assert bradley_terry(*scores, torch.ones(1), 0.1).item() == pytest.approx(1.0990770, abs=1e-6)


@pytest.mark.parametrize("centre", [None, 0.02])
@pytest.mark.parametrize("margin", [None, torch.tensor([0.5, 1.0, 0.0, 2.0])])
def test_reward_models_as_trl(centre, margin):
    from trl.trainer.reward_trainer import RewardTrainer

    torch.manual_seed(6)
    scores = torch.randn(8, 1, requires_grad=True)
    stub = SimpleNamespace(
        model=SimpleNamespace(training=False), args=SimpleNamespace(center_rewards_coefficient=centre),
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0,
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
    )  # fmt: skip
    inputs = {} if margin is None else {"margin": margin}
    theirs = RewardTrainer.compute_loss(stub, lambda **_: SimpleNamespace(logits=scores), inputs)
    same(bradley_terry(*scores[:, 0].chunk(2), margin, centre or 0.0).mean(), theirs, scores)
