"""The corners of learning from rewards: ends of passes, answers of one token, rewards that are all alike, the watch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import policy_for_tests as policies
import pytest

from tunekit.rl.rollouts import Drawn, Rollout
from tunekit.rl.watch import FIRST, LAST, RewardWatch

FUNCTIONS = '''
def same(completions):
    return [0.25] * len(completions)

def silent(completions):
    return [None] * len(completions)

def partly(completions):
    return [None if index % 2 else 1.0 for index in range(len(completions))]
'''


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = policies.write_prompts(tmp_path_factory.mktemp("prompts"), 8)
    (path.parent / "mine.py").write_text(policies.REWARD + FUNCTIONS, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    return policies.write_model(tmp_path_factory.mktemp("sharp"))


@pytest.fixture(scope="module")
def made(plan_of, run_plan, prompts, sharp, logged):
    """Makes a run; its lines of training, and its folder."""

    def make(method, function="vowels", *, block=None, **sets):
        given = {"reward": [{"function": f"{prompts.parent / 'mine.py'}:{function}"}]} | (block or {})
        sets = {"model__name": sharp, "train__max_steps": 4} | sets
        plan = policies.policy_plan(plan_of, prompts, method, block=given, **sets)
        run_plan(plan)
        return [line for line in logged(plan) if "loss" in line], Path(plan.run_dir)

    return make


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def model_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model" / "model.safetensors")


def test_passes_end_when_the_policy_has_gone_too_far(made):
    """Two batches, three passes: of each window of six steps, those after the first that is too far are left out."""
    block = {"rollout_steps": 2, "passes": 3, "target_kl": 1e-6}
    lines, folder = made("grpo", block=block, train__max_steps=12)
    skipped = [line["step"] for line in lines_of(folder / "samples.jsonl") if line.get("skipped")]
    assert skipped == [3, 4, 5, 6, 9, 10, 11, 12]  # the second step already sees what the first has changed
    for line in lines:
        assert ("approx_kl" in line) == (line["step"] not in skipped)
        assert (line["grad_norm"] > 0) == (line["step"] not in skipped)
    rest, other = made("grpo", block=block | {"target_kl": 100.0}, train__max_steps=12)
    assert not any(line.get("skipped") for line in lines_of(other / "samples.jsonl"))
    assert rest[1]["loss"] == lines[1]["loss"] and all(line["approx_kl"] < 100 for line in rest)


@pytest.mark.slow
def test_an_entropy_bonus_moves_entropy_up(made):
    found = {}
    for coefficient in (0.0, 1.0):
        lines, _ = made(
            "grpo", "same", block={"entropy_coef": coefficient, "generations": 8}, train__max_steps=12,
            train__learning_rate=3e-3,
        )  # fmt: skip
        found[coefficient] = [line["entropy"] for line in lines]
    assert sum(found[1.0][-4:]) > sum(found[1.0][:4]) + 0.4  # nats a token, four steps
    assert found[0.0][-1] == pytest.approx(found[0.0][4 - 1], abs=0.5)


@pytest.mark.slow
def test_an_answer_without_an_end_is_punished(made):
    plain, _ = made("grpo", train__max_steps=1)
    lines, folder = made("grpo", block={"missing_end_penalty": 3.0}, train__max_steps=1)
    assert 0 < lines[0]["ended_share"] < 1
    wanted = plain[0]["reward"] - 3.0 * (1 - lines[0]["ended_share"])
    assert lines[0]["reward"] == pytest.approx(wanted) and lines[0]["reward/vowels"] == plain[0]["reward/vowels"]
    for line in lines_of(folder / "rollouts.jsonl"):
        assert line["ended"] or line["tokens"] == policies.BLOCK["max_new_tokens"]
        assert line["reward"] == pytest.approx(line["parts"]["vowels"] - (0 if line["ended"] else 3.0))


@pytest.mark.parametrize("method", ["ppo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("grpo", "rloo"))])
def test_answers_of_one_token(method, made):
    lines, _ = made(method, block={"max_new_tokens": 1, "beta": 0.1, "passes": 2})
    assert {line["answer_tokens"] for line in lines} == {1.0}
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]) for line in lines)


def test_an_end_at_once_is_an_answer(made, sharp, tmp_path):
    """A model that says nothing but the end: answers without text, each alike."""
    import shutil

    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    folder = Path(shutil.copytree(sharp, tmp_path / "mute"))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][AutoTokenizer.from_pretrained(folder).eos_token_id, 0] = 40.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    lines, run = made("ppo", model__name=str(folder), train__max_steps=2, block={"passes": 2, "rollout_steps": 1})
    assert lines[0]["answer_tokens"] == 1.0 and lines[0]["ended_share"] == 1.0
    assert {line["answer"] for line in lines_of(run / "rollouts.jsonl")} == {""}
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]) for line in lines)


@pytest.mark.parametrize(
    ("method", "function"),
    [
        ("grpo", "same"),
        ("rloo", "silent"),
        pytest.param("grpo", "silent", marks=pytest.mark.slow),
        pytest.param("rloo", "same", marks=pytest.mark.slow),
    ],
)
def test_rewards_that_are_all_alike_move_nothing(method, function, made, sharp):
    """No answer is better than another; nor where no reward says anything."""
    import torch
    from safetensors.torch import load_file

    lines, folder = made(method, function, block={"beta": 0.0}, train__max_steps=2)
    assert {line["grad_norm"] for line in lines} == {0.0}
    before, after = load_file(Path(sharp) / "model.safetensors"), model_of(folder)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert ("reward/silent" in lines[0]) is False


def test_ppo_stays_finite_on_rewards_that_are_all_alike(made):
    block = {"generations": 1, "beta": 0.0, "whiten_rewards": True}
    lines, _ = made("ppo", "silent", block=block, train__max_steps=3)
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]) for line in lines)


@pytest.mark.slow
def test_a_run_goes_back_within_a_window(made, monkeypatch):
    """The loss of step 3 is nan, once: the answers of the window are those of the checkpoint of step 1."""
    from dataclasses import replace

    from tunekit.rl.policy import PolicyTrainer

    share_of, hit = PolicyTrainer.share_of, []

    def broken(self, model, inputs):
        share = share_of(self, model, inputs)
        if model.training and self.state.global_step == 2 and not hit:
            hit.append(self.told)
            return replace(share, total=share.total * math.nan)
        return share

    monkeypatch.setattr(PolicyTrainer, "share_of", broken)
    block = {"rollout_steps": 2, "passes": 2, "target": 0.1}
    more = {"guards__on_divergence": "rollback", "train__save_every": 1, "train__max_steps": 5}
    lines, folder = made("ppo", block=block, **more)
    assert [line["step"] for line in lines_of(folder / "samples.jsonl") if line.get("skipped")] == [2, 3]
    assert {line["reward"] for line in lines[:4]} == {hit[0]["reward"]} and lines[4]["reward"] != hit[0]["reward"]
    steps = [line["step"] for line in lines_of(folder / "rollouts.jsonl")]
    assert steps == [1] * 4 + [5] * 4


def test_a_reward_that_says_nothing_of_some(made):
    lines, _ = made("grpo", "partly", train__max_steps=1)
    assert lines[0]["reward/partly"] == 1.0 and lines[0]["reward"] == pytest.approx(0.5, abs=0.1)


def window(**numbers):
    """Two prompts with answers of 2 and 1 tokens each."""
    made, at = [], 0
    for prompt in range(2):
        answers = []
        for size in (2, 1):
            own = {name: values[at : at + size] for name, values in numbers.items()}
            answers.append(Drawn([7] * size, True, "", reward=float(3 * prompt + size), numbers=own))
            at += size
        made.append(Rollout([1], [prompt], answers))
    return made


OLD, REFERENCE = [-1.0, -2.0, -0.5, -1.5, -1.0, -3.0], [-1.5, -1.0, -0.5, -1.0, -3.0, -2.0]


def advantages(rollouts):
    return [value for rollout in rollouts for drawn in rollout.answers for value in drawn.numbers["advantages"]]


def test_rloo_takes_the_kl_of_the_answer_from_its_reward():
    """KL of the answers: 0.5 - 1, 0; -0.5 + 2, -1. Rewards 2, 1; 5, 4."""
    from tunekit.rl.compared import left_out

    rollouts = window(old=OLD, reference=REFERENCE)
    left_out(rollouts, 0.5, "k1", normalise=False)
    one, two = (2 + 0.25) - 1.0, (5 - 0.75) - (4 + 0.5)
    assert advantages(rollouts) == pytest.approx([one, one, -one, two, two, -two])


def test_ppo_takes_the_kl_of_each_token_from_its_reward():
    """GAE by hand with gamma 1 and lambda 1: returns are sums of rewards; advantages whitened over the window."""
    from statistics import fmean, stdev

    from tunekit.rl.estimated import Estimate, estimated

    values = [0.5, 1.0, -1.0, 2.0, 0.0, 1.0]
    rollouts = window(old=OLD, reference=REFERENCE, values=values)
    estimated(rollouts, 0.5, Estimate("k1", 1.0, 1.0, whiten_rewards=False))
    paid = [-0.5 * (old - reference) for old, reference in zip(OLD, REFERENCE, strict=True)]
    returns = [paid[0] + paid[1] + 2, paid[1] + 2, paid[2] + 1, paid[3] + paid[4] + 5, paid[4] + 5, paid[5] + 4]
    found = [value for rollout in rollouts for drawn in rollout.answers for value in drawn.numbers["returns"]]
    assert found == pytest.approx(returns)
    raw = [one - other for one, other in zip(returns, values, strict=True)]
    wanted = [(value - fmean(raw)) / stdev(raw) for value in raw]
    assert advantages(rollouts) == pytest.approx(wanted, rel=1e-5)


# --- the watch over rewards


def means(reward, tokens=50.0, kl=2.0, spread=0.5):
    return {"reward": reward, "answer_tokens": tokens, "kl": kl, "reward_spread": spread}


def test_an_ordinary_history_is_silent():
    watch = RewardWatch()
    for at in range(60):
        kl = 20 * (1 - math.exp(-at / 20))
        assert watch.see(means(1 - math.exp(-at / 15), 50 + at / 2 + 5 * math.sin(at), kl)) is None


def test_a_reward_that_does_not_rise_is_silent_whatever_happens():
    watch = RewardWatch()
    assert not any(watch.see(means(0.3 - at / 100, 50 * (1 + at), 10.0 * at)) for at in range(40))


SIGNS = {
    "kl": (lambda at: {"kl": 4.0 * at}, "KL from the reference"),
    "long": (lambda at: {"tokens": 20.0 + 10 * at}, "grown from 30 to"),
    "short": (lambda at: {"tokens": max(4.0, 100 - 10 * at)}, "shrunk from 90 to"),
}


@pytest.mark.parametrize("sign", SIGNS)
def test_a_policy_that_runs_away_is_told_once(sign):
    history, words = SIGNS[sign]
    watch, said = RewardWatch(), []
    for at in range(40):
        if at == 15:  # goes on from a checkpoint
            fresh = RewardWatch()
            fresh.restore(json.loads(json.dumps(watch.state())))
            watch = fresh
        told = watch.see(means(0.1 * at, **history(at)))
        said += [told] if told else []
    assert len(said) == 1 and words in said[0] and "rollouts.jsonl" in said[0]


def test_too_short_a_history_says_nothing():
    watch = RewardWatch()
    assert not any(watch.see(means(float(at), kl=1e3)) for at in range(FIRST + LAST - 1))
    assert watch.see(means(99.0, kl=1e3))


def test_without_a_reference_there_is_no_kl_to_tell_of():
    watch = RewardWatch()
    for at in range(20):
        assert watch.see({"reward": float(at), "answer_tokens": 10.0, "reward_spread": 1.0}) is None
