"""Each method learns what it is paid for: answers in which the end of a word is frequent."""

from __future__ import annotations

from statistics import fmean, stdev

import policy_for_tests as policies
import pytest

STEPS = 40
WORTH = '''
def moons(completions):
    """The share of letters of the answer that are in the word."""
    return [sum(letter in "moon" for letter in text) / (1 + len(text)) for text in completions]
'''
BLOCKS = {
    "grpo": {"generations": 8},
    "rloo": {"generations": 8, "beta": 0.01},
    "ppo": {"generations": 8, "passes": 2, "beta": 0.01, "value_coef": 0.5},
}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = policies.write_prompts(tmp_path_factory.mktemp("prompts"), 32)
    (path.parent / "mine.py").write_text(WORTH, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    return policies.write_model(tmp_path_factory.mktemp("sharp"))


@pytest.mark.slow
@pytest.mark.parametrize("method", BLOCKS)
def test_the_mean_reward_rises(method, plan_of, run_plan, logged, prompts, sharp, note):
    """The last ten steps against the first four: by half, and by more than four standard errors."""
    reward = {"reward": [{"function": f"{prompts.parent / 'mine.py'}:moons"}], "max_new_tokens": 8}
    plan = policies.policy_plan(
        plan_of, prompts, method, block=reward | BLOCKS[method], model__name=sharp, train__max_steps=STEPS,
        train__learning_rate=3e-3, data__eval={"count": 8}, eval__every=STEPS,
    )  # fmt: skip
    run_plan(plan)
    rewards = [line["reward"] for line in logged(plan) if "loss" in line]
    first, last = rewards[:4], rewards[-10:]
    error = (stdev(first) ** 2 / 4 + stdev(last) ** 2 / 10) ** 0.5
    note(f"{method}: {fmean(first):.3f} -> {fmean(last):.3f}, standard error {error:.3f}")
    assert fmean(last) > 1.5 * fmean(first) and fmean(last) - fmean(first) > 4 * error
