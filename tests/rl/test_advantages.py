"""Advantages and the KL penalty against hand-worked numbers, definitions written out, and TRL's own statements."""

from __future__ import annotations

import ast
import inspect
import textwrap
from types import SimpleNamespace

import pytest
import torch

from tunekit.core.errors import DivergedError
from tunekit.rl.advantages import (
    AdaptiveKL,
    gae,
    group_relative,
    group_relative_each,
    kl_estimate,
    leave_one_out,
    shaped_rewards,
    whiten,
)
from tunekit.rl.compared import compared_each
from tunekit.rl.rollouts import Drawn, Rollout

NAN = float("nan")


def near(found, wanted, tolerance=1e-6):
    torch.testing.assert_close(found, torch.as_tensor(wanted, dtype=found.dtype), atol=tolerance, rtol=1e-5)


def test_gae_by_hand():
    # gamma 0.9, lambda 0.5, so gamma x lambda = 0.45; rewards 0, 0, 1; values 0.5, 0.6, 0.7
    # deltas: 0.9 x 0.6 - 0.5 = 0.04;  0.9 x 0.7 - 0.6 = 0.03;  1 - 0.7 = 0.3
    # advantages: 0.3;  0.03 + 0.45 x 0.3 = 0.165;  0.04 + 0.45 x 0.165 = 0.11425
    # the second answer has one token: 2 - 0.4 = 1.6; what stands in its padding is not looked at
    rewards = torch.tensor([[0.0, 0.0, 1.0], [2.0, 9.0, NAN]])
    values = torch.tensor([[0.5, 0.6, 0.7], [0.4, NAN, 9.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.5)
    near(advantages, [[0.11425, 0.165, 0.3], [1.6, 0, 0]])
    near(returns, [[0.61425, 0.765, 1.0], [2.0, 0, 0]])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.97, 1.0), (0.9, 0.0)])
def test_gae_is_the_discounted_sum_of_errors(gamma, lam):
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [0] * 7]).bool()  # a hole: not its own tokens
    rewards, values = torch.randn(3, 7, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    advantages, _ = gae(rewards, values, mask, gamma, lam)
    wanted = torch.zeros(3, 7, dtype=torch.float64)
    for row in range(3):
        r, v = rewards[row][mask[row]].tolist(), [*values[row][mask[row]].tolist(), 0.0]
        errors = [r[i] + gamma * v[i + 1] - v[i] for i in range(len(r))]
        sums = [sum((gamma * lam) ** (j - i) * errors[j] for j in range(i, len(r))) for i in range(len(r))]
        wanted[row][mask[row]] = torch.tensor(sums, dtype=torch.float64)
    near(advantages, wanted, 1e-12)


def test_whitening_by_hand():
    # 1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, variance 14 / 2 = 7, root 2.6457513
    values, mask = torch.tensor([[1.0, 2.0, NAN], [6.0, 5.0, 5.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    near(whiten(values, mask), [[-0.7559289, -0.3779645, 0], [1.1338934, 0, 0]])
    near(whiten(values, mask, shift_mean=False), [[2.2440711, 2.6220355, 0], [4.1338934, 0, 0]])


def test_whitening_of_one_value_or_none_is_finite():
    one = torch.tensor([True, False])
    near(whiten(torch.tensor([4.0, 5.0]), one), [0.0, 0.0])
    near(whiten(torch.tensor([4.0, 5.0]), ~one & one), [0.0, 0.0])


def test_group_advantages_by_hand():
    # group 0: 1, 0, 0.5: mean 0.5, deviation sqrt((0.25 + 0.25) / 2) = 0.5, so 0.5 / 0.5001 = 0.9998
    # group 1: 2, 2: all alike, 0. Groups may stand in any order
    rewards, groups = torch.tensor([1.0, 2.0, 0.0, 2.0, 0.5]), torch.tensor([0, 1, 0, 1, 0])
    near(group_relative(rewards, groups), [0.9998, 0, -0.9998, 0, 0])
    near(group_relative(rewards, groups, "none"), [0.5, 0, -0.5, 0, 0])
    # batch: mean 1.1, squares 0.01 + 0.81 + 1.21 + 0.81 + 0.36 = 3.2, deviation sqrt(0.8) = 0.8944272; 0.5 / 0.8945272
    near(group_relative(rewards, groups, "batch"), [0.5589545, 0, -0.5589545, 0, 0])


def test_leave_one_out_by_hand():
    # group 0: 1, 0, 0.5: 1 - 0.25, 0 - 0.75, 0.5 - 0.5. Group 1: 2, 4. Group 2: alone
    rewards, groups = torch.tensor([1.0, 2.0, 0.0, 4.0, 0.5, 7.0]), torch.tensor([0, 1, 0, 1, 0, 2])
    near(leave_one_out(rewards, groups), [0.75, -2, -0.75, 2, 0, 0])
    # normalised: mean 0, squares 2 x 0.5625 + 8 = 9.125, over the five that have one: sqrt(9.125 / 4) = 1.5103807
    near(leave_one_out(rewards, groups, normalise=True), [0.4965308, -1.3240821, -0.4965308, 1.3240821, 0, 0], 1e-6)


REWARDS = [
    [0.1, 0.9, 0.4, 0.3, 1.5, -2.0, 0.7, 0.7, 0.7],
    [0.1, NAN, 0.4, NAN, NAN, -2.0, NAN, NAN, NAN],  # without a reward: some, all but one, all of a group
]


def trl_statements(trainer, first, last, **names):
    """Runs TRL's own statements, from the one that holds ``first`` to the one that holds ``last``."""
    method = trainer._generate_and_score_completions
    body = ast.parse(textwrap.dedent(inspect.getsource(method))).body[0].body
    texts = [ast.unparse(node) for node in body]
    start = next(i for i, text in enumerate(texts) if first in text)
    end = next(i for i, text in enumerate(texts) if i >= start and last in text)
    space = dict(inspect.unwrap(method).__globals__) | names
    exec(compile(ast.Module(body[start : end + 1], []), "trl", "exec"), space)
    return space["advantages"]


def trl_grpo(rewards, weights, **options):
    from trl.trainer.grpo_trainer import GRPOTrainer

    stub = SimpleNamespace(reward_weights=weights, reward_funcs=[None] * rewards.shape[1], **options)
    return trl_statements(
        GRPOTrainer, "unscorable_mask = ", "nan_to_num(advantages", self=stub, rewards_per_func=rewards,
        num_generations=3, device=torch.device("cpu"),
    )  # fmt: skip


GROUPS = torch.arange(3).repeat_interleave(3)


@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages_as_trl(rewards, scale):
    options = {"scale_rewards": scale, "multi_objective_aggregation": "sum_then_normalize"}
    theirs = trl_grpo(torch.tensor(rewards)[:, None], torch.ones(1), **options)
    ours = group_relative(torch.tensor(rewards), GROUPS, scale)
    lonely = torch.tensor(rewards).view(3, 3).isnan().sum(1) == 2
    assert not ours.view(3, 3)[lonely].any()
    near(ours, theirs, 2e-6 if scale != "group" else 1e-5)


def test_advantages_of_several_rewards_as_trl():
    torch.manual_seed(0)
    rewards, weights = torch.randn(9, 2), torch.tensor([1.0, 0.3])
    rewards[4], rewards[7, 1] = NAN, NAN  # one answer has none at all, another one of two
    options = {"scale_rewards": "group", "multi_objective_aggregation": "normalize_then_sum"}
    near(group_relative_each(rewards, GROUPS, weights), trl_grpo(rewards, weights, **options), 1e-5)


def test_a_window_of_several_rewards_as_trl():
    """The same of drawn answers: rewards come by name, in the recipe's order, before they are weighed."""
    torch.manual_seed(1)
    rewards, weights = torch.randn(9, 3), torch.tensor([1.0, 0.3, -2.0])
    rewards[2], rewards[6, 0] = NAN, NAN
    answers = [
        Drawn([1] * (1 + at), True, "", parts=dict(zip("cab", row, strict=True)))
        for at, row in enumerate(rewards.tolist())
    ]
    compared_each([Rollout([5], [at], answers[3 * at : 3 * at + 3]) for at in range(3)], weights.tolist())
    options = {"scale_rewards": "group", "multi_objective_aggregation": "normalize_then_sum"}
    assert [len(answer.numbers["advantages"]) for answer in answers] == list(range(1, 10))
    found = [set(answer.numbers["advantages"]) for answer in answers]
    assert all(len(values) == 1 for values in found)
    near(torch.tensor([values.pop() for values in found]), trl_grpo(rewards, weights, **options), 1e-5)


@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize("normalise", [False, True])
def test_leave_one_out_as_trl(rewards, normalise):
    from trl.trainer.rloo_trainer import RLOOTrainer

    stub = SimpleNamespace(
        reward_weights=torch.ones(1), reward_clip_range=None, beta=0.0, normalize_advantages=normalise
    )
    theirs = trl_statements(
        RLOOTrainer, "unscorable_mask = ", "nan_to_num(advantages", self=stub,
        rewards_per_func=torch.tensor(rewards)[:, None], num_generations=3, device=torch.device("cpu"),
    )  # fmt: skip
    near(leave_one_out(torch.tensor(rewards), GROUPS, normalise=normalise), theirs, 2e-6)


def test_kl_estimates_by_hand():
    # log p = -1, log q = -1.5: log q / p = -0.5
    # k1 = 0.5;  k2 = 0.125;  k3 = exp(-0.5) - 1 + 0.5 = 0.1065307
    logps, reference = torch.tensor([-1.0]), torch.tensor([-1.5])
    for kind, wanted in (("k1", 0.5), ("k2", 0.125), ("k3", 0.1065307)):
        near(kl_estimate(kind, logps, reference), [wanted])


def test_k1_and_k3_are_unbiased_and_k2_nearly():
    torch.manual_seed(0)
    p, q = torch.randn(6).double().log_softmax(0), torch.randn(6).double().log_softmax(0)
    exact = (p.exp() * (p - q)).sum()
    for kind in ("k1", "k3"):
        near((p.exp() * kl_estimate(kind, p, q)).sum(), exact, 1e-12)
    close = (p + 0.01 * q).log_softmax(0)
    assert (p.exp() * kl_estimate("k2", p, close)).sum().item() == pytest.approx(
        (p.exp() * (p - close)).sum().item(), rel=0.05
    )


def test_token_rewards_by_hand():
    # beta 0.1; the score stands at the last token of the answer, before a hole or the padding too
    kl = torch.tensor([[1.0, 2.0, NAN, 4.0], [3.0, 9.0, 9.0, 9.0], [NAN] * 4])
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [0] * 4]).bool()
    found = shaped_rewards(torch.tensor([1.0, -1.0, 5.0]), kl, mask, 0.1)
    near(found, [[-0.1, -0.2, 0, 0.6], [-1.3, 0, 0, 0], [0, 0, 0, 0]])


def test_the_price_of_kl_by_hand():
    # target 6, horizon 100, 10 answers a step: an error is cut off at 20 %
    # KL 12: 0.1 x (1 + 0.2 x 0.1) = 0.102;  KL 6.6: 0.102 x (1 + 0.1 x 0.1) = 0.10302;  KL 0: x 0.98 = 0.1009596
    control = AdaptiveKL(0.1, 6.0, 100)
    assert control.update(12.0, 10) == pytest.approx(0.102)
    resumed = AdaptiveKL(0.1, 6.0, 100)
    resumed.restore(control.state())
    for each in (control, resumed):
        assert [each.update(6.6, 10), each.update(0.0, 10)] == pytest.approx([0.10302, 0.1009596])


def test_a_kl_that_is_no_number_does_not_become_a_price():
    control = AdaptiveKL(0.1, 6.0, 100)
    with pytest.raises(DivergedError, match="KL of the answers"):
        control.update(NAN, 10)
    assert control.beta == 0.1
