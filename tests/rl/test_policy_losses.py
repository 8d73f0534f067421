"""Losses of policies and values against hand-worked numbers and against TRL's, values and gradients."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from tunekit.rl.advantages import kl_estimate
from tunekit.rl.policy_losses import (
    PolicyOptions,
    StepTotals,
    entropy_bonus,
    explained_variance,
    policy_loss,
    token_weights,
    value_loss,
)

NAN = float("nan")
LENGTHS = torch.tensor([7, 3, 4, 1, 5, 6])
MASK = torch.arange(7) < LENGTHS[:, None]


def near(found, wanted, tolerance=1e-6):
    torch.testing.assert_close(found, torch.as_tensor(wanted, dtype=found.dtype), atol=tolerance, rtol=1e-5)


def test_ppo_by_hand():
    # ratios 1.5, 0.5, 1.1, 0.5 at bounds 0.8 and 1.2
    # advantage 1:  -min(1.5, 1.2) = -1.2, clipped;  -min(0.5, 0.8) = -0.5, not clipped
    # advantage -2: -min(-2.2, -2.2) = 2.2;  -min(-1, -1.6) = 1.6, clipped
    old = torch.tensor([[-2.0, -2.0, NAN], [-2.0, -2.0, 7.0]])
    ratios = torch.tensor([[1.5, 0.5, 1.0], [1.1, 0.5, 1.0]])
    logps = (old + ratios.log()).requires_grad_()
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]]).bool()
    found = policy_loss(logps, old, torch.tensor([1.0, -2.0]), mask, PolicyOptions())
    loss = found.tokens
    near(loss.detach(), [[-1.2, -0.5, 0], [2.2, 1.6, 0]])
    assert found.clipped.tolist() == [[True, False, False], [False, True, False]]
    # the gradient is -advantage x ratio, 0 where clipped
    near(torch.autograd.grad(loss.sum(), logps)[0].nan_to_num(0.0), [[0, -0.5, 0], [2.2, 0, 0]])


def test_values_by_hand():
    # old 1, clip 0.2. Value 2, return 1.5: max(0.25, (1.2 - 1.5) ** 2 = 0.09) = 0.25
    # value 2, return 2: max(0, (1.2 - 2) ** 2 = 0.64) = 0.64, clipped;  value 1.1, return 3: 3.61 both
    values = torch.tensor([[2.0, 2.0, 1.1, NAN]], requires_grad=True)
    old, returns = torch.ones(1, 4), torch.tensor([[1.5, 2.0, 3.0, 1.0]])
    mask = torch.tensor([[True, True, True, False]])
    loss, clipped = value_loss(values, old, returns, mask)
    near(loss.detach(), [[0.125, 0.32, 1.805, 0]])
    assert clipped.item() == pytest.approx(1 / 3)
    near(value_loss(values, old, returns, mask, None)[0].detach(), [[0.125, 0, 1.805, 0]])
    near(torch.autograd.grad(loss.sum(), values)[0].nan_to_num(0.0), [[0.5, 0, -1.9, 0]])


def test_explained_variance_by_hand():
    # returns 1, 2, 3 of variance 2 / 3; left 0, 0, 0.3: mean 0.1, variance (0.01 + 0.01 + 0.04) / 3 = 0.02
    mask = torch.tensor([True, True, True, False])
    values, returns = torch.tensor([1.0, 2.0, 2.7, NAN]), torch.tensor([1.0, 2.0, 3.0, 9.0])
    assert explained_variance(values, returns, mask) == pytest.approx(0.97)
    assert explained_variance(values, torch.ones(4), mask) != explained_variance(values, torch.ones(4), mask)  # nan


def test_an_entropy_without_gradient_still_pulls_the_right_way():
    # over all tokens, weighed by their probabilities, the estimate is the gradient of the entropy itself
    torch.manual_seed(0)
    logits, drawn = (torch.randn(5).double() for _ in range(2))
    logits.requires_grad_()
    logps, old = logits.log_softmax(0), drawn.log_softmax(0)  # drawn from a policy that is no longer the present one
    entropy = -(logps.exp() * logps).sum()
    (exact,) = torch.autograd.grad(-0.01 * entropy, logits, retain_graph=True)
    each = entropy_bonus(logps, old, entropy.detach().expand(5), torch.ones(5).bool(), 0.01)
    near(torch.autograd.grad((old.exp() * each).sum(), logits, retain_graph=True)[0], exact, 1e-12)
    assert exact.abs().max() > 1e-4
    near(entropy_bonus(logps, old, entropy, torch.tensor(True), 0.01).detach(), -0.01 * entropy.item(), 1e-12)
    # the baseline: at the greatest entropy, log p = -entropy of every token, no token drawn pulls anywhere
    flat = torch.full((5,), -1.6094379, requires_grad=True)
    each = entropy_bonus(flat, flat.detach(), torch.full((5,), 1.6094379), torch.ones(5).bool(), 0.01)
    near(torch.autograd.grad(each.sum(), flat)[0], [0.0] * 5)


def trl_grpo(kind, parts, logps, old, advantages, reference, options, beta):
    """TRL's own code: the sum of the losses of micro-batches ``parts`` of a step."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    total = 0.0
    for part in parts:
        accelerator = SimpleNamespace(
            gather=lambda x: x, num_processes=1, reduce=lambda x, reduction: x, sync_gradients=True
        )
        stub = SimpleNamespace(
            model=SimpleNamespace(training=True), accelerator=accelerator, aux_loss_enabled=False, beta=beta,
            top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level=options.importance,
            loss_type=kind, epsilon_low=options.low, epsilon_high=options.high, max_completion_length=9,
            current_gradient_accumulation_steps=len(parts), use_vllm=False, _entropy_bonus_enabled=False,
            _metrics=defaultdict(lambda: defaultdict(list)),
            args=SimpleNamespace(
                delta=options.cap, sapo_temperature_pos=1.0, sapo_temperature_neg=1.05,
                steps_per_generation=2 * len(parts), use_bias_correction_kl=False,
            ),
            _get_per_token_logps_and_entropies=lambda *_, part=part, **__: (logps[part], torch.zeros(1, 7), None),
        )  # fmt: skip
        ids = torch.zeros(len(MASK[part]), 7).long()
        inputs = {
            "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": MASK[part].long(),
            "advantages": advantages[part], "old_per_token_logps": old[part], "ref_per_token_logps": reference[part],
            "num_items_in_batch": torch.tensor(60.0),  # of a rollout of two steps
        }  # fmt: skip
        total = total + GRPOTrainer._compute_loss(stub, None, inputs)
    return total


def drawn():
    torch.manual_seed(7)
    logps = (-2 * torch.rand(6, 7)).requires_grad_()
    old, reference = logps.detach() + 0.4 * torch.randn(6, 7), logps.detach() + torch.randn(6, 7)
    return logps, old, torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0]), reference


STEP = StepTotals(sequences=6, tokens=float(LENGTHS.sum()), rollout_tokens=30.0, max_tokens=9)
KINDS = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo")
WHOLE, PARTS = [slice(0, 6)], [slice(0, 3), slice(3, 6)]


@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.parametrize("importance", ["token", "sequence"])
@pytest.mark.parametrize(("kind", "parts"), [(kind, WHOLE if kind == "bnpo" else PARTS) for kind in KINDS])
def test_grpo_and_its_kin_as_trl(kind, parts, importance, beta):
    # bnpo: TRL's mean is over a micro-batch's own tokens, so that only a step of one micro-batch can be the same
    logps, old, advantages, reference = drawn()
    high = 1.1 if kind == "cispo" else 0.1
    options = PolicyOptions(kind=kind, importance=importance, low=0.05, high=high, cap=1.3)
    theirs = trl_grpo(kind, parts, logps, old, advantages, reference, options, beta)
    ours = torch.zeros(())
    for part in PARTS:
        mask = MASK[part]
        tokens = policy_loss(logps[part], old[part], advantages[part], mask, options).tokens
        tokens = tokens + beta * kl_estimate("k3", logps[part], reference[part]) * mask
        ours = ours + (tokens * token_weights(kind, LENGTHS[part], STEP)[:, None]).sum()
    near(ours, theirs.item(), 1e-6)
    near(torch.autograd.grad(ours, logps)[0], torch.autograd.grad(theirs, logps)[0])


def test_clipped_tokens_have_no_gradient_and_others_have():
    logps, old, advantages, _ = drawn()
    found = policy_loss(logps, old, advantages, MASK, PolicyOptions(low=0.1, high=0.1))
    gradient = torch.autograd.grad(found.tokens.sum(), logps)[0]
    assert torch.equal(gradient != 0, MASK & ~found.clipped)
    assert 0 < found.clipped.sum() < MASK.sum()


def test_rloo_as_trl():
    from trl.trainer.rloo_trainer import RLOOTrainer

    logps, old, advantages, _ = drawn()
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True), aux_loss_enabled=False, epsilon_low=0.2, epsilon_high=0.3,
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, torch.zeros(6, 7), None),
    )  # fmt: skip
    ids = torch.zeros(6, 7).long()
    inputs = {"prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": MASK.long(),
              "advantages": advantages, "old_logps": (old * MASK).sum(1)}  # fmt: skip
    theirs = RLOOTrainer._compute_loss(stub, None, inputs)
    found = policy_loss(logps, old, advantages, MASK, PolicyOptions(importance="product", low=0.2, high=0.3))
    ours = (found.tokens * token_weights("grpo", LENGTHS, STEP)[:, None]).sum()
    near(ours, theirs.item(), 1e-6)
    near(torch.autograd.grad(ours, logps)[0], torch.autograd.grad(theirs, logps)[0])
    clipped = stub._metrics["train"]["clip_ratio/region_mean"][0]
    assert found.clipped[:, 0].float().mean().item() == pytest.approx(clipped) and clipped > 0


def test_what_a_step_weighs_does_not_depend_on_how_it_is_cut():
    for kind in KINDS:
        whole = token_weights(kind, LENGTHS, STEP)
        parts = torch.cat([token_weights(kind, LENGTHS[part], STEP) for part in (slice(0, 1), slice(1, 6))])
        assert torch.equal(whole, parts)
        if kind in ("grpo", "sapo", "bnpo"):
            assert (whole * LENGTHS).sum().item() == pytest.approx(1.0)


def test_an_answer_without_tokens_costs_nothing():
    logps = torch.zeros(2, 3, requires_grad=True)
    mask = torch.tensor([[0, 0, 0], [1, 1, 0]]).bool()
    for importance in ("token", "sequence", "product"):
        options = PolicyOptions(importance=importance)
        found = policy_loss(logps, torch.zeros(2, 3), torch.ones(2), mask, options)
        loss = (found.tokens * token_weights("grpo", mask.sum(1), StepTotals(2, 2))[:, None]).sum()
        assert loss.item() == -0.5 and torch.autograd.grad(loss, logps)[0].isfinite().all()
