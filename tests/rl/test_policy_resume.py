"""A run that draws answers, stopped in the middle of a window or at its border, ends as if never stopped."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import policy_for_tests as policies
import pytest

from tunekit.core.errors import Stopped
from tunekit.core.files import sha256_file

LORA = {"kind": "lora", "r": 4, "alpha": 8}
LAYOUT = {"rollout_steps": 2, "passes": 2, "beta": 0.1}
STEPS = 7  # 11 prompts in batches of 4: windows of 4 and of 2 steps, and the next epoch's first
CASES = {
    "ppo": {"block": {**LAYOUT, "target": 0.05, "horizon": 50, "generations": 2}, "adapter": LORA},
    "ppo full": {"block": {**LAYOUT, "target_kl": 1e-3, "generations": 2}, "train__micro_batch_size": 1},
    "grpo": {"block": {**LAYOUT, "reference": "base", "temperature": 0.7}, "train__micro_batch_size": 2},
    "rloo": {"block": {**LAYOUT, "normalise": True}, "adapter": LORA},
    "grpo one by one": {"block": {**LAYOUT, "rollout_batch_size": 1}},
    "ppo one by one": {"block": {**LAYOUT, "generations": 2, "rollout_batch_size": 1}, "adapter": LORA},
}
EVAL = {"data__eval": {"count": 2}, "eval__every": 3, "train__keep_best": True}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return policies.write_prompts(tmp_path_factory.mktemp("prompts"), 13)


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    return policies.write_model(tmp_path_factory.mktemp("sharp"))


@pytest.fixture
def ask_at(monkeypatch):
    """Sends this process a signal in a step, when its answers are there: it is seen when the step ends."""
    from transformers import TrainerCallback

    from tunekit.train.session import Session

    build = Session.build

    def arm(step):
        class Ask(TrainerCallback):
            def on_step_begin(self, args, state, control, **_):
                if state.global_step == step - 1:
                    os.kill(os.getpid(), signal.SIGTERM)

        def armed(self):
            trainer = build(self)
            if self.checkpoint is None:
                trainer.add_callback(Ask())
            return trainer

        monkeypatch.setattr(Session, "build", armed)

    return arm


def told(plan):
    """Everything that a run said and wrote, without the times."""
    folder = Path(plan.run_dir)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        for name in ("seconds", "tokens_per_second", "trained_tokens_per_second", "memory_gb", "mfu"):
            line.pop(name, None)
    weights = {path.name: sha256_file(path) for path in sorted((folder / "model").glob("*.safetensors"))}
    assert weights
    return metrics, [(folder / name).read_text() for name in ("samples.jsonl", "rollouts.jsonl")], weights


@pytest.fixture(scope="module")
def uninterrupted(plan_of, run_plan, prompts, sharp):
    made = {}

    def whole(case):
        if case not in made:
            sets = {"model__name": sharp, "train__max_steps": STEPS, **EVAL, **CASES[case]}
            made[case] = policies.policy_plan(plan_of, prompts, case.split()[0], **sets)
            run_plan(made[case])
        return made[case]

    return whole


def cases():
    """Step 3 is in the middle of a window, 4 its border, 6 the end of an epoch."""
    for case in list(CASES)[:4]:
        for at in (3, 4, 6):
            quick = (case, at) in (("ppo", 3), ("grpo", 4))
            yield pytest.param(case, at, marks=[] if quick else [pytest.mark.slow])


@pytest.mark.parametrize(("case", "at"), cases())
def test_stopped_and_gone_on_with_is_as_if_never_stopped(case, at, uninterrupted, run_plan, ask_at):
    from tunekit.core.progress import Silent
    from tunekit.train.pipeline import Job, run

    whole = uninterrupted(case)
    cut = whole.model_copy(update={"run_dir": f"{whole.run_dir}-{at}"})
    ask_at(at)
    with pytest.raises(Stopped):
        run_plan(cut)
    assert [p.name for p in sorted((Path(cut.run_dir) / "checkpoints").iterdir())][-1].endswith(f"{at}")
    done = run(Job(cut, None, resume=True), Silent())
    assert done.status == "done" and done.resumed[0].step == at
    assert told(cut) == told(whole)
    lines, (samples, rollouts), _ = told(whole)
    assert len([line for line in lines if "loss" in line]) == STEPS
    steps = [json.loads(line)["step"] for line in rollouts.splitlines()]
    assert sorted(set(steps)) == [1, 5, 7] and steps == sorted(steps)  # windows begin there
    assert ("skipped" in samples) == (case == "ppo full")


DRAWING, MEASURING, HELD_OUT = "drawing answers", "measuring answers", "answering held-out prompts"
IN = [
    pytest.param("grpo one by one", DRAWING, 4, marks=pytest.mark.slow),
    pytest.param("grpo one by one", DRAWING, 0, marks=pytest.mark.slow),
    pytest.param("grpo one by one", HELD_OUT, 3),
    pytest.param("grpo one by one", DRAWING, 6, marks=pytest.mark.slow),
    pytest.param("grpo", MEASURING, 4, marks=pytest.mark.slow),
    pytest.param("ppo one by one", DRAWING, 0, marks=pytest.mark.slow),
    pytest.param("ppo one by one", DRAWING, 6, marks=pytest.mark.slow),
    pytest.param("ppo one by one", HELD_OUT, 6, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("case", "what", "at"), IN)
def test_stopped_among_answers_ends_at_once_and_goes_on_as_if_never(case, what, at, uninterrupted, run_plan, ask_in):
    """After the second of a window's 24 or fewer, the first of 2 held-out ones; the run that goes on has them all."""
    from tunekit.core.progress import Silent
    from tunekit.train.pipeline import Job, run

    whole = uninterrupted(case)
    cut = whole.model_copy(update={"run_dir": f"{whole.run_dir}-{what.split()[0]}-{at}"})
    times = 1 if what == HELD_OUT else 2
    done = ask_in(what, at, times)
    with pytest.raises(Stopped) as caught:
        run_plan(cut)
    assert f"at step {at}, with a checkpoint" in caught.value.told
    assert done[-1] == what and done.count(what) == times
    assert [p.name for p in sorted((Path(cut.run_dir) / "checkpoints").iterdir())][-1] == f"step-{at:06d}"
    assert run(Job(cut, None, resume=True), Silent()).status == "done"
    assert told(cut) == told(whole)


def test_a_rank_that_was_not_asked_ends_with_those_that_were():
    """Two ranks' halves of one agreement: each tells the other whether it came to its end."""
    from types import SimpleNamespace

    import torch

    from tunekit.rl.stopping import Cut, unless_asked
    from tunekit.train.signals import StopRequest

    def rank(others, signum=None):
        stop, told, model = StopRequest(), [], torch.nn.Linear(1, 1)
        stop.signum = signum

        def agree(values):
            told.append(("agree", *values))
            return [float(values[0]) + others]

        trainer = SimpleNamespace(
            stop=stop, model=model, accelerator=SimpleNamespace(unwrap_model=lambda model: model),
            ranks=SimpleNamespace(sum=agree),
        )  # fmt: skip
        work = lambda: (model(torch.zeros(1)), told.append("share"))  # noqa: E731
        try:
            unless_asked(trainer, work, lambda: told.append("share"))
        except Cut:
            told.append("cut")
        assert not model._forward_pre_hooks
        return told

    assert rank(others=0) == ["share", ("agree", False)]
    assert rank(others=1) == ["share", ("agree", False), "cut"]
    assert rank(others=0, signum=15) == ["share", ("agree", True), "cut"]


@pytest.mark.slow
def test_a_target_that_is_new_begins_from_the_price(uninterrupted, plan_of, prompts, sharp, ask_at, run_plan):
    """A fixed price leaves nothing in the checkpoint that an adaptive one could go on from."""
    from tunekit.core.progress import Silent
    from tunekit.train.pipeline import Job, run

    sets = {"model__name": sharp, "train__max_steps": 9}  # 13 prompts: windows of 4 steps
    plan = policies.policy_plan(plan_of, prompts, "ppo", block={**LAYOUT, "generations": 2}, **sets)
    ask_at(3)
    with pytest.raises(Stopped):
        run_plan(plan)
    options = plan.recipe.options.model_copy(update={"target": 0.05, "horizon": 50.0})
    changed = plan.model_copy(update={"recipe": plan.recipe.model_copy(update={"ppo": options})})
    done = run(Job(changed, None, resume=True, allowed=("ppo",)), Silent())
    assert done.status == "done"
    lines = [json.loads(line) for line in (Path(plan.run_dir) / "metrics.jsonl").read_text().splitlines()]
    assert lines[4]["kl_price"] == 0.1 and lines[-1]["kl_price"] != 0.1
