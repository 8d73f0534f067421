"""Real preference and math files through every method that learns from answers: rows' fates, and three steps."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tunekit.core.registry import METHODS
from tunekit.data.ledger import Ledger
from tunekit.recipe.load import load

ROOT = Path(__file__).parents[2]
MODEL = "model.name='builtin:random?layers=2&hidden=64'"
COMMON = [
    MODEL, "adapter=null", "data.eval={count: 8}", "data.max_length=512", "train.epochs=null", "train.max_steps=3",
    "train.batch_size=4", "train.micro_batch_size=2", "train.log_every=1", "eval.every=null", "eval.limit=8",
    "train.threads=1",
]  # fmt: skip
PAIRS = {
    "hh": ("preference/hh_rlhf_harmless_base_test.first1500.jsonl.gz", 120, {87: "the chosen answer is empty"}),
    "en": ("preference/lf_dpo_en_demo.first240.json", 60, {}),
    "zh": ("preference/lf_dpo_zh_demo.first240.json", 60, {}),
}
JUDGED = {
    "kto": ("preference/lf_kto_en_demo.first240.json", 60, {}),
    "taskmaster": ("preference/taskmaster3_reward_01.json", 60, {}),
}
PROMPTS = {
    "gsm8k": ("math/gsm8k_train.jsonl", "numeric_answer"),
    "cmath": ("math/cmath_dev.jsonl", "numeric_answer"),
}
METHODS_OF_PAIRS = ("dpo", "simpo", "orpo", "cpo", "reward")
AT_ONCE = {("dpo", "hh"), ("kto", "taskmaster")}
"""Those of the quick suite."""


def cases(methods, files):
    """Every method on every file."""
    every = [(method, file) for method in methods for file in files]
    return [pytest.param(*one, marks=() if one in AT_ONCE else pytest.mark.slow) for one in every]


def trained(run_recipe, method, path, limit, *more):
    plan, record = run_recipe(
        f"preferences/{method}.yaml", *COMMON, f"data.train=[{{path: {json.dumps(str(path))}, limit: {limit}}}]",
        "data.max_drop_rate=0.6", *more,
    )  # fmt: skip
    assert (record.status, record.training.steps) == ("done", 3)
    assert math.isfinite(record.training.final_loss)
    return plan, record


@pytest.mark.parametrize(("method", "file"), cases(METHODS_OF_PAIRS, PAIRS))
def test_a_method_of_pairs_runs_on_real_pairs(method, file, shared_data, run_recipe):
    name, limit, faults = PAIRS[file]
    plan, record = trained(run_recipe, method, shared_data / name, limit)
    ledger = list(Ledger.load(Path(plan.run_dir) / "ledger.parquet"))
    assert len(ledger) == limit
    for line, reason in faults.items():
        assert [entry.reason for entry in ledger if entry.origin.line == line + 1 or entry.origin.line == line].count(
            reason
        ) == 1
    names = {task.metric for task in record.evaluation.tasks}
    assert "preference_accuracy" in names


@pytest.mark.parametrize(("method", "file"), cases(["kto"], JUDGED))
def test_kto_runs_on_real_judged_answers(method, file, shared_data, run_recipe):
    name, limit, _ = JUDGED[file]
    more = ["data.train.0.format=scored_turns", "data.max_length=2048"] if file == "taskmaster" else []
    trained(run_recipe, method, shared_data / name, limit, *more)


@pytest.mark.parametrize(("method", "file"), cases(["grpo", "rloo", "ppo"], PROMPTS))
def test_rewards_on_real_mathematics(method, file, shared_data, run_recipe):
    name, reward = PROMPTS[file]
    mapped = ", columns: {prompt: input, reference: golden}, format: prompts" if file == "cmath" else ""
    plan, record = run_recipe(
        f"rl/{method}.yaml", *COMMON,
        f"data.train=[{{path: {json.dumps(str(shared_data / name))}, limit: 40{mapped}}}]",
        "data.max_drop_rate=0.6", f"{method}.reward=[{{kind: {reward}}}, {{kind: length, max: 8}}]",
        f"{method}.generations=2", f"{method}.max_new_tokens=8",
    )  # fmt: skip
    assert (record.status, record.training.steps) == ("done", 3)
    lines = [json.loads(line) for line in (Path(plan.run_dir) / "metrics.jsonl").read_text().splitlines()]
    assert {"reward", f"reward/{reward}", "reward/length", "entropy", "answer_tokens"} <= set(lines[0])
    shown = [json.loads(line) for line in (Path(plan.run_dir) / "rollouts.jsonl").read_text().splitlines()]
    assert all(row["reference"] and row["prompt"] for row in shown)


CHAINS = [path for folder in ("preferences", "rl", "distill") for path in (ROOT / "recipes" / folder).glob("*.yaml")]


@pytest.mark.parametrize("path", sorted(CHAINS), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_of_the_chains_loads(path):
    assert load(path).method in METHODS.names


def test_every_method_has_a_recipe():
    written = {load(path).method for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "eval"}
    assert written == set(METHODS.names)
