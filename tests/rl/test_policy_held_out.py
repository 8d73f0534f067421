"""The held-out prompts: greedy answers, their rewards, and the table of before and after."""

from __future__ import annotations

import json
from pathlib import Path

import policy_for_tests as policies
import pytest


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return policies.write_prompts(tmp_path_factory.mktemp("prompts"), 16)


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    return policies.write_model(tmp_path_factory.mktemp("sharp"), end=1.05)  # some greedy answers end, some do not


@pytest.fixture(scope="module")
def planned(plan_of, prompts, sharp):
    def make(method="grpo", **sets):
        sets = {"model__name": sharp, "data__eval": {"count": 5}, "train__max_steps": 2} | sets
        return policies.policy_plan(plan_of, prompts, method, **sets)

    return make


def greedy(trainer, count):
    """The rewards of transformers' own greedy answers to the held-out prompts, one by one."""
    import torch

    stops = {*trainer.stop_ids, trainer.tokenizer.eos_token_id}
    found = []
    for row in trainer.eval_dataset:
        with torch.no_grad():
            ids = trainer.model.eval().generate(
                input_ids=torch.tensor([row["input_ids"]]), max_new_tokens=count, do_sample=False,
                eos_token_id=sorted(stops), pad_token_id=0,
            )[0].tolist()[len(row["input_ids"]) :]  # fmt: skip
        ended = ids[-1] in stops
        text = trainer.tokenizer.decode(ids[: len(ids) - ended], skip_special_tokens=True)
        found.append((sum(letter in "aeiou" for letter in text) / (1 + len(text)), len(ids), ended))
    return found


def test_an_evaluation_is_the_mean_of_greedy_answers_whatever_the_batch(planned, ready_of):
    """Against transformers' generate; the model's modes and the answers being learnt from are left alone."""
    found = []
    for size, block in ((32, {}), (1, {"rollout_batch_size": 1}), (2, {"rollout_batch_size": 3})):
        _, trainer = ready_of(planned(eval__batch_size=size, block=block | {"missing_end_penalty": 0.5}))
        modes = [module.training for module in trainer.model.modules()]
        found.append(trainer.evaluate())
        assert [module.training for module in trainer.model.modules()] == modes and not trainer.rollouts
    answers = greedy(trainer, policies.BLOCK["max_new_tokens"])
    assert len({size for _, size, _ in answers}) > 1
    rewards = [reward - 0.5 * (not ended) for reward, _, ended in answers]
    for values in found:
        assert values["eval_reward"] == pytest.approx(sum(rewards) / 5) == -values["eval_loss"]
        assert values["eval_answer_tokens"] == pytest.approx(sum(size for _, size, _ in answers) / 5)
        assert values["eval_ended_share"] == pytest.approx(sum(ended for *_, ended in answers) / 5)
        assert values["eval_reward/vowels"] == pytest.approx(sum(reward for reward, *_ in answers) / 5)


class Ranks:
    """One of several processes, which tell each other what they have when all have been."""

    def __init__(self, rank, world, told):
        self.rank, self.world, self.told = rank, world, told

    def gather(self, value):
        self.told.append(value)
        return list(self.told)

    def sum(self, values):
        assert values == [False]  # nobody was asked to stop
        return values


@pytest.mark.parametrize("world", [2, 4, 7])
def test_an_evaluation_does_not_depend_on_the_number_of_processes(world, planned, ready_of):
    """More processes than prompts, too: the last of these have none."""
    _, trainer = ready_of(planned())
    alone, told = trainer.evaluation(trainer.eval_dataset), []
    for rank in range(world - 1, -1, -1):
        if rank:
            ranks = Ranks(rank, world, told)
            try:
                trainer.ranks = ranks
                trainer.evaluation(trainer.eval_dataset)
            except KeyError:  # the means of those that have been so far may lack the reward
                pass
        else:
            trainer.ranks = Ranks(0, world, told)
            found = trainer.evaluation(trainer.eval_dataset)
    assert found == pytest.approx(alone) and len(told) == world


def test_the_table_of_before_and_after(planned, run_plan, sharp, ready_of):
    """Rewards whole and by part, with intervals; the number before is that of the model as it is."""
    reward = [{"kind": "ended", "weight": 0.5}, {"kind": "length", "target": 5}]
    plan = planned(block={"reward": reward}, eval__baseline=True, eval__every=1)
    record = run_plan(plan)
    tasks = {task.metric: task for task in record.evaluation.tasks}
    assert {"reward", "reward/ended", "reward/length"} <= set(tasks)
    assert all(task.n == 5 and task.higher_is_better for task in tasks.values())
    _, trainer = ready_of(planned(block={"reward": reward}))
    before = trainer.evaluate()
    assert tasks["reward"].base.value == pytest.approx(before["eval_reward"])
    lines = [json.loads(line) for line in (Path(plan.run_dir) / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "eval_reward" in line][-1]
    assert tasks["reward"].tuned.value == pytest.approx(last["eval_reward"])
    for name in ("reward/ended", "reward/length"):
        assert tasks[name].tuned.value == pytest.approx(last[f"eval_{name}"])
    whole = 0.5 * tasks["reward/ended"].tuned.value + tasks["reward/length"].tuned.value
    assert tasks["reward"].tuned.value == pytest.approx(whole)
    assert len(record.evaluation.samples) == 5
    assert "reward" in (Path(plan.run_dir) / "report.html").read_text(encoding="utf-8")


def test_metrics_of_generation_beside_the_rewards(planned, run_plan):
    plan = planned(eval__baseline=True, eval__generate=True, eval__metrics=["exact_match"], eval__max_new_tokens=4)
    metrics = [task.metric for task in run_plan(plan).evaluation.tasks]
    assert {"reward", "exact_match"} <= set(metrics) and "perplexity" not in metrics


def test_some_of_the_held_out_rows(planned, run_plan):
    record = run_plan(planned(eval__limit=2, train__max_steps=1))
    assert {task.n for task in record.evaluation.tasks} == {2}


@pytest.mark.parametrize("method", ["ppo", "grpo", "rloo"])
def test_without_held_out_rows(method, planned, run_plan):
    record = run_plan(planned(method, data__eval=None, train__max_steps=1, eval__baseline=True))
    assert record.status == "done" and record.evaluation is None


def test_the_finished_model_has_no_head_of_values(planned, run_plan, sharp):
    """With the best checkpoint brought back; full and as an adapter."""
    from safetensors.torch import load_file

    for adapter in (None, {"kind": "lora", "r": 4}):
        plan = planned("ppo", adapter=adapter, eval__every=1, train__keep_best=True)
        run_plan(plan)
        (file,) = (Path(plan.run_dir) / "model").glob("*model.safetensors")
        names = load_file(file).keys()
        assert names and not any("value_" in name for name in names)
        if adapter is None:
            assert names == load_file(Path(sharp) / "model.safetensors").keys()
        best = sorted((Path(plan.run_dir) / "checkpoints").iterdir())[-1]
        assert set(load_file(best / "values.safetensors")) > {"weight", "bias"}


def test_in_bf16_the_rewards_while_training_are_those_of_the_table(planned, run_plan):
    """Both are of the weights as they are, whatever the precision of training."""
    plan = planned(train__precision="bf16", eval__every=1, block={"max_new_tokens": 24})
    record = run_plan(plan)
    (task,) = (task for task in record.evaluation.tasks if task.metric == "reward")
    lines = [json.loads(line) for line in (Path(plan.run_dir) / "metrics.jsonl").read_text().splitlines()]
    assert task.tuned.value == [line["eval_reward"] for line in lines if "eval_reward" in line][-1]


def test_without_mixed_precision_is_for_a_while_and_leaves_training_as_it_was(planned, ready_of):
    """In the wrapper of accelerate the logits are rounded to bf16: that is what the evaluation steps out of."""
    import torch

    from tunekit.rl.held_out import without_mixed_precision

    _, trainer = ready_of(planned(train__precision="bf16", train__max_steps=1))
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    ids = torch.tensor([trainer.eval_dataset[0]["input_ids"]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with without_mixed_precision(model):
            inside = model(input_ids=ids).logits
        after = model(input_ids=ids).logits
        assert torch.equal(before, after) and not torch.equal(before, inside)
        for_good = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        assert torch.equal(for_good(input_ids=ids).logits, inside)
        with without_mixed_precision(for_good):  # and where there is no wrapper nothing happens
            assert torch.equal(for_good(input_ids=ids).logits, inside)
