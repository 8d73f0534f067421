"""What goes wrong in a run that draws answers is told in words, with the place, and leaves nothing half-written."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import policy_for_tests as policies
import pytest

from tunekit.core.errors import DataError, MachineError, Stopped, UserError

FAULTS = '''
import math
CALLS = []

def late(completions, wrong):
    """Wrong from the third call on."""
    CALLS.append(1)
    good = [0.5] * len(completions)
    return good if len(CALLS) < 3 else wrong(good)

def raises(completions):
    def wrong(good):
        raise KeyError("no such score")
    return late(completions, wrong)

def is_nan(completions):
    return late(completions, lambda good: good[:-1] + [math.nan])

def is_short(completions):
    return late(completions, lambda good: good[:-1])

def is_text(completions):
    return late(completions, lambda good: ["0.5"] * len(good))
'''


FAR = '''
def huge(completions):
    return [1.0] * (len(completions) - 1) + [1e39]

def large(completions):
    return [1.0] * (len(completions) - 1) + [1e38]
'''


@pytest.fixture
def prompts(tmp_path):
    path = policies.write_prompts(tmp_path / "rows", 8)
    (path.parent / "faults.py").write_text(FAULTS, encoding="utf-8")
    return path


@pytest.fixture
def planned(plan_of, prompts):
    """A plan whose reward is a function of the faulty file, or other blocks."""

    def make(function=None, *, method="grpo", reward=None, block=None, **sets):
        if function is not None:
            reward = [{"function": f"{prompts.parent / 'faults.py'}:{function}"}]
        return policies.policy_plan(
            plan_of, prompts, method, block=(block or {}) | ({"reward": reward} if reward else {}), **sets
        )

    return make


def record_of(plan):
    return json.loads((Path(plan.run_dir) / "record.json").read_text(encoding="utf-8"))


LATE = {
    "raises": "raised KeyError: 'no such score'",
    "is_nan": "returned nan",
    "is_short": "returned 11 values for 12 answers",
    "is_text": "returned '0.5', which is no number,",
}


@pytest.mark.parametrize(
    "function", [pytest.param(name, marks=pytest.mark.slow if name in ("is_short", "is_text") else ()) for name in LATE]
)
def test_a_reward_function_that_fails_in_the_middle_of_a_run(function, planned, run_plan, prompts):
    plan = planned(function, train__max_steps=6, train__save_every=1)
    with pytest.raises(UserError) as caught:
        run_plan(plan)
    assert caught.value.exit_code == 2
    (problem,) = caught.value.problems
    assert LATE[function] in problem.what and f"'{function}'" in problem.what
    assert problem.where.startswith(f"{prompts}:") and problem.fix
    record, folder = record_of(plan), Path(plan.run_dir)
    assert (record["status"], record["exit_code"]) == ("failed", 2)
    assert LATE[function] in json.dumps(record)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir())[-1] == "step-000002"
    assert not (folder / "model").exists() and not (folder / ".lock").exists()
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert {json.loads(line)["step"] for line in (folder / "rollouts.jsonl").read_text().splitlines()} == {1, 2}
    assert not [path for path in folder.rglob(".*") if path.is_file()]


BEYOND = {"huge": ("1e+39", {}), "large": ("1e+38, times its weight -10,", {"weight": -10.0})}


@pytest.mark.parametrize("function", ["huge", pytest.param("large", marks=pytest.mark.slow)])
def test_a_reward_that_no_float32_holds_is_refused_by_name_with_its_sample(function, planned, run_plan, prompts):
    """In the place of an infinite advantage; another reward beside it is not blamed."""
    value, more = BEYOND[function]
    (prompts.parent / "far.py").write_text(FAR, encoding="utf-8")
    reward = [{"kind": "ended"}, {"function": f"{prompts.parent / 'far.py'}:{function}", **more}]
    plan = planned(reward=reward, train__max_steps=1)
    with pytest.raises(UserError) as caught:
        run_plan(plan)
    (problem,) = caught.value.problems
    assert problem.what.startswith(f"reward '{function}': {value} for the answer '")
    assert problem.where.startswith(f"{prompts}:") and "3.4e+38, the largest float32" in problem.fix
    assert not Path(plan.run_dir).exists()  # no step was done: there is nothing to go on with
    assert run_plan(planned(reward=[reward[1] | {"weight": 1e-9}], train__max_steps=1)).status == "done"


def refused(plan, kind=UserError):
    """What claiming a run says; nothing was made."""
    from tunekit.train.pipeline import claim

    with pytest.raises(kind) as caught:
        claim(plan)
    assert not Path(plan.run_dir).exists()
    return str(caught.value)


UNUSED = {
    "clips of sapo": ("grpo", {"loss": "sapo", "clip_low": 0.2, "clip_high": 0.2}, "clip_low clip_high"),
    "clip_low of cispo": ("grpo", {"loss": "cispo", "clip_low": 0.2, "clip_high": 4.0}, "clip_low"),
    "delta of cispo": ("grpo", {"loss": "cispo", "delta": 1.5}, "delta"),
    "kl without a price": ("grpo", {"kl": "k3"}, "kl"),
    "kl without a price of rloo": ("rloo", {"kl": "k1", "beta": 0}, "kl"),
    "reference without a price": ("grpo", {"reference": "initial"}, "reference"),
    "target_kl of one step": ("grpo", {"target_kl": 0.1}, "target_kl"),
    "scale of rewards by themselves": ("grpo", {"aggregation": "normalize_then_sum", "scale": "group"}, "scale"),
    "penalty beside rewards by themselves": (
        "grpo", {"aggregation": "normalize_then_sum", "missing_end_penalty": 0.5}, "missing_end_penalty"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSED)
def test_what_nothing_would_go_by_is_refused(case, planned):
    from tunekit.train.pipeline import claim

    method, block, keys = UNUSED[case]
    with pytest.raises(UserError) as caught:
        claim(planned("late", method=method, block=block))
    assert [problem.where for problem in caught.value.problems] == [f"{method}.{key}" for key in keys.split()]
    assert [problem.fix for problem in caught.value.problems] == [f"leave {key} out" for key in keys.split()]
    assert all("means nothing to" in problem.what for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("method", "block"),
    [
        ("grpo", {"loss": "sapo"}),
        ("grpo", {"loss": "cispo", "clip_high": 4.0}),
        ("grpo", {"beta": 0.1, "kl": "k1", "reference": "base", "clip_low": 0.1, "delta": 2.0}),
        ("grpo", {"passes": 2, "target_kl": 0.1}),
        ("rloo", {"rollout_steps": 2, "target_kl": 0.1, "kl": "k2", "reference": "initial"}),
        ("grpo", {"aggregation": "normalize_then_sum"}),
    ],
)
def test_defaults_and_what_something_goes_by_are_not(method, block, planned):
    from tunekit.plan.plan import Plan
    from tunekit.train.pipeline import claim

    plan = claim(planned("late", method=method, block=block))
    path = Path(plan.run_dir) / "plan.json"
    plan.save(path)  # every key stands in it
    assert Plan.load(path).recipe == plan.recipe


def test_rewards_that_cannot_be_had_are_refused_before_anything_is_made(planned, prompts, tmp_path):
    (tmp_path / "broken.py").write_text("def f(completions:\n", encoding="utf-8")
    assert "broken.py" in refused(planned(reward=[{"function": f"{tmp_path / 'broken.py'}:f"}]))
    assert "nowhere.py" in refused(planned(reward=[{"function": f"{tmp_path / 'nowhere.py'}:f"}]))
    assert "no function 'rases'" in refused(planned("rases"))
    assert "nowhere" in refused(planned(reward=[{"model": str(tmp_path / "nowhere")}]))
    told = refused(planned(reward=[{"model": str(tmp_path / "none")}, {"function": f"{tmp_path / 'broken.py'}:f"}]))
    assert "broken.py" in told or "none" in told


def test_a_reward_model_without_a_head_is_refused(planned, tmp_path):
    folder = policies.write_model(tmp_path / "plain")
    assert "head" in refused(planned(reward=[{"model": folder}]))


@pytest.mark.parametrize("kind", ["exact_match", "numeric_answer"])
def test_prompts_without_the_right_answer_that_a_reward_needs(kind, planned, run_plan, prompts, write_rows):
    """Found before training, though the row at fault is in a later window; and once, however many answers it has."""
    rows = [policies.question(number) | {"answer": "7"} for number in range(8)]
    rows[6] = {"prompt": [{"role": "user", "content": "And now?"}]}
    mixed = [{"question": row["question"], "answer": row["answer"]} for row in rows[:6] + rows[7:]]
    write_rows(prompts, [{"prompt": r["question"], "reference": r["answer"]} for r in mixed] + [rows[6]])
    plan = planned(reward=[{"kind": kind}], train__max_steps=2, data__shuffle=False)
    with pytest.raises(DataError) as caught:
        run_plan(plan)
    problems = caught.value.problems
    assert [problem.where for problem in problems] == [f"{prompts}:8"], problems
    assert kind in problems[0].what
    assert not Path(plan.run_dir).exists()  # refused before the first step: nothing to go on with


def test_a_run_that_is_refused_before_its_first_step_leaves_no_folder(planned, prompts):
    """In the first window too; and of nothing that is gone is it said how it goes on."""
    from tunekit.core.progress import Silent
    from tunekit.train.pipeline import Job, claim, run

    class Heard(Silent):
        said = ()

        def say(self, text):
            self.said += (text,)

    (prompts.parent / "at_once.py").write_text("def f(completions):\n    return 1 / 0\n", encoding="utf-8")
    plan = claim(planned(reward=[{"function": f"{prompts.parent / 'at_once.py'}:f"}], train__max_steps=2))
    screen = Heard()
    with pytest.raises(UserError, match="ZeroDivisionError"):
        run(Job(plan, "method: grpo\n"), screen)
    assert not Path(plan.run_dir).exists()
    assert not [text for text in screen.said if "tunekit runs show" in text or "resume" in text]


@pytest.mark.slow
def test_a_prompt_that_is_too_long_is_dropped_and_told(planned, run_plan, prompts, write_rows):
    rows = [policies.question(number) for number in range(8)]
    rows[3]["question"] = "red " * 100
    write_rows(prompts, rows)
    plan = planned(train__max_steps=1, data__max_drop_rate=0.5, data__max_length=40)
    record = run_plan(plan)
    counts = record.data.splits["train"]
    assert (counts.dropped, counts.kept) == (1, 7)
    told = planned(train__max_steps=1, data__max_length=40)
    with pytest.raises(DataError, match="rows"):
        run_plan(told)


def test_a_prompt_that_fills_the_models_positions(planned, run_plan, prompts):
    """Found before training, with its place; where there is room for a shorter answer, a warning says so."""
    name = "builtin:random?layers=2&hidden=32&heads=2&length={}"
    with pytest.raises(DataError, match="leaves no room for an answer in the model's 12 positions") as caught:
        run_plan(planned(model__name=name.format(12), train__max_steps=1))
    (problem,) = caught.value.problems
    assert problem.where.startswith(f"{prompts}:") and "data.max_length" in problem.fix


def test_room_for_shorter_answers_only(planned, prompts, session_of):
    from tunekit.core.progress import Silent

    class Heard(Silent):
        said = ()

        def warn(self, text):
            self.said += (text,)

    name = "builtin:random?layers=2&hidden=32&heads=2&length=32"
    plan = planned(model__name=name, train__max_steps=1, block={"max_new_tokens": 20, "missing_end_penalty": 1.0})
    _, trainer = session_of(plan)
    screen = Heard()
    trainer.ready(screen)
    assert any("prompts leave room for shorter answers only (32 positions)" in text for text in screen.said)
    trainer.train()
    for rollout in trainer.rollouts.values():
        for drawn in rollout.answers:
            assert drawn.ended or len(rollout.prompt) + len(drawn.ids) == min(32, len(rollout.prompt) + 20)


def test_the_probe_sees_prompts_with_their_longest_answers(planned, ready_of):
    """As many tokens as the largest batch of training can have: 3 answers of 40 tokens beside each prompt."""
    from tunekit.train.memory import probe
    from tunekit.train.trials import Trials

    plan = planned(train__max_steps=1, block={"max_new_tokens": 40, "generations": 3}, data__eval={"count": 2})
    _, trainer = ready_of(plan)
    seen = []
    given = trainer.data_collator

    class Collate:
        def __call__(self, examples):
            batch = given(examples)
            seen.append((len(examples), batch["tokens"].tolist(), batch["branches"].tolist()))
            return batch

    trainer.data_collator = Collate()
    probe(trainer, plan, trainer.where)
    longest = sorted(trainer.train_dataset["length"][:], reverse=True)[:4]
    assert (4, [length + 120 for length in longest], [[40] * 3] * 4) in seen
    assert Trials(trainer, plan, trainer.where).train.take(1, 16)[0]["branches"] == [8, 8, 8]
    trainer.data_collator = given
    trainer.train()  # and nothing is left of it
    assert trainer.state.log_history[0]["reward"] > 0


def test_a_reward_file_that_moved_is_missed_when_the_run_goes_on(planned, prompts, run_plan, monkeypatch):
    from transformers import TrainerCallback

    from tunekit.core.progress import Silent
    from tunekit.train.pipeline import Job, run
    from tunekit.train.session import Session

    build = Session.build

    class Ask(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    def armed(self):
        trainer = build(self)
        if self.checkpoint is None:
            trainer.add_callback(Ask())
        return trainer

    plan = planned(train__max_steps=4)
    with monkeypatch.context() as patched:
        patched.setattr(Session, "build", armed)
        with pytest.raises(Stopped):
            run_plan(plan)
    mine = prompts.parent / "mine.py"
    mine.rename(prompts.parent / "elsewhere.py")
    before = (Path(plan.run_dir) / "metrics.jsonl").read_text()
    with pytest.raises(UserError) as caught:
        run(Job(plan, None, resume=True), Silent())
    assert "there is no file" in str(caught.value) and "mine.py" in str(caught.value)
    assert (Path(plan.run_dir) / "metrics.jsonl").read_text() == before
    assert record_of(plan)["status"] == "stopped"  # the run is what it was
    (prompts.parent / "elsewhere.py").rename(mine)
    assert run(Job(plan, None, resume=True), Silent()).status == "done"


def test_memory_that_is_too_small_names_the_answers(planned, ready_of, monkeypatch):
    """The probe fails with the words of training, which name the row; no device is needed to see it."""
    from tunekit.train.memory import probe

    plan = planned(train__max_steps=1)
    _, trainer = ready_of(plan)
    monkeypatch.setattr(type(trainer), "local_loss", lambda *_: (_ for _ in ()).throw(MemoryError("out of memory")))
    with pytest.raises(MachineError) as caught:
        probe(trainer, plan, trainer.where)
    assert "out of memory" in str(caught.value) and "prompts.jsonl:" in str(caught.value)
