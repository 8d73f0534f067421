from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tunekit.core.errors import DataError, UserError
from tunekit.core.progress import Silent
from tunekit.evaluate.contract import TaskResult
from tunekit.evaluate.run import check, compare, evaluate_model, rows_of


@pytest.fixture(scope="module")
def tuned(llama, rows):
    """A Llama that has learned the rows by heart."""
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    width = max(len(item.input_ids) for item in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for n, item in enumerate(rows):
        ids[n, : len(item.input_ids)] = torch.tensor(item.input_ids)
        labels[n, : len(item.input_ids)] = torch.where(
            torch.tensor(item.trained), torch.tensor(item.input_ids), torch.tensor(-100)
        )
    for _ in range(60):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def scores(values, items, texts=()):
    return TaskResult(
        name="generation",
        metric="exact_match",
        higher_is_better=True,
        statistic="mean",
        values=tuple(values),
        weights=(1.0,) * len(values),
        items=tuple(items),
        texts=tuple(texts),
    )


def test_a_planted_gain_is_detected(llama, tuned, tokenizer, rows, spec):
    base = evaluate_model(llama(), tokenizer, rows, spec(), Silent())
    after = evaluate_model(tuned, tokenizer, rows, spec(), Silent())
    found = compare(base, after)
    generation, perplexity = found["tasks"]
    assert (generation["name"], perplexity["name"]) == ("generation", "perplexity")
    assert [task["verdict"] for task in found["tasks"]] == ["better", "better"]
    assert perplexity["difference"]["value"] < 0 < generation["difference"]["value"]
    assert generation["tuned"]["value"] > 0.9 and generation["n"] == 24
    tokens = sum(sum(row.trained) for row in rows)
    assert perplexity["tuned"]["value"] == pytest.approx(math.exp(sum(after[0].values) / tokens))
    backwards = compare(after, base)
    assert [task["verdict"] for task in backwards["tasks"]] == ["worse", "worse"]


def test_identical_models_do_not_differ(llama, tokenizer, rows, spec):
    base = evaluate_model(llama(), tokenizer, rows, spec(), Silent())
    again = evaluate_model(llama(), tokenizer, rows, spec(batch_size=3), Silent())
    found = compare(base, again)
    assert [task["verdict"] for task in found["tasks"]] == ["no detectable difference"] * 2
    assert found["tasks"][0]["difference"] | {"low": 0, "high": 0} == {"value": 0, "low": 0, "high": 0, "p_value": 1}


def test_the_shape(llama, tuned, tokenizer, rows, spec):
    results = [evaluate_model(model, tokenizer, rows, spec(), Silent()) for model in (llama(), tuned)]
    found = compare(*results, samples=5)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(found) == ["tasks", "samples", "seconds"]
    assert found["seconds"] == pytest.approx(sum(r.seconds for side in results for r in side))
    keys = ["name", "metric", "higher_is_better", "n", "base", "tuned", "difference", "verdict", "confidence"]
    assert all(list(task) == keys for task in found["tasks"])
    assert list(found["tasks"][0]["difference"]) == ["value", "low", "high", "p_value"]
    for sample in found["samples"]:
        (item,) = [row for row in rows if row.where == sample["where"]]
        assert (sample["prompt"], sample["reference"]) == (item.prompt_text, item.reference)
        assert sample["tuned_correct"] is (sample["tuned"].strip() == item.reference)
        assert sample["base_correct"] is (sample["base"].strip() == item.reference)
    assert len(found["samples"]) == 5


def test_without_a_base(tuned, tokenizer, rows, spec):
    found = compare(None, evaluate_model(tuned, tokenizer, rows, spec(), Silent()))
    assert all(task["base"] is task["difference"] is task["verdict"] is None for task in found["tasks"])
    assert found["samples"][0]["base"] is found["samples"][0]["base_correct"] is None


def test_without_generation(tuned, tokenizer, rows, spec):
    found = compare(None, evaluate_model(tuned, tokenizer, rows, spec(generate=False), Silent()))
    assert [task["name"] for task in found["tasks"]] == ["perplexity"] and found["samples"] == []


def test_samples_are_drawn_without_looking(rows):
    values = [float(n % 3 == 0) for n in range(24)]
    right = []
    for seed in range(200):
        drawn = compare(None, [scores(values, rows, ["x"] * 24)], seed=seed, samples=6)["samples"]
        right.append(sum(sample["tuned_correct"] for sample in drawn))
    assert sum(right) / 1200 == pytest.approx(8 / 24, abs=0.04)
    again = [compare(None, [scores(values, rows, ["x"] * 24)], seed=1)["samples"] for _ in range(2)]
    assert again[0] == again[1]


def test_all_wrong_has_an_interval(rows):
    (task,) = compare([scores([0.0] * 24, rows)], [scores([0.0] * 24, rows)])["tasks"]
    assert task["tuned"]["low"] == 0.0 and 0.1 < task["tuned"]["high"] < 0.2
    assert task["difference"]["low"] < 0 < task["difference"]["high"]
    assert task["verdict"] == "no detectable difference"


def test_nan_logits_give_nan_and_no_verdict(llama, tokenizer, rows, spec):
    broken = llama()
    with torch.no_grad():
        broken.lm_head.weight.fill_(math.nan)
    base = evaluate_model(llama(), tokenizer, rows, spec(generate=False), Silent())
    after = evaluate_model(broken, tokenizer, rows, spec(generate=False), Silent())
    (task,) = compare(base, after)["tasks"]
    assert all(math.isnan(value) for value in [*task["tuned"].values(), *task["difference"].values()])
    assert task["base"]["value"] > 1 and task["verdict"] is None
    generated = evaluate_model(broken, tokenizer, rows, spec(), Silent())
    assert compare(None, generated)["tasks"][0]["tuned"]["value"] == 0.0  # generation itself does not crash


def test_nothing_counted_is_nan_and_not_zero(rows):
    nothing = TaskResult("perplexity", "perplexity", False, "perplexity", (0.0, 0.0), (0.0, 0.0), tuple(rows[:2]))
    (task,) = compare([nothing], [nothing])["tasks"]
    assert task["n"] == 0 and math.isnan(task["tuned"]["value"]) and task["verdict"] is None


def test_different_rows_are_not_compared(rows):
    with pytest.raises(AssertionError, match="same rows"):
        compare([scores([0.0], rows[:1])], [scores([0.0, 1.0], rows[:2])])


def test_limit_draws_the_same_rows_in_order(rows):
    few = rows_of(rows, 6)
    assert few == rows_of(rows, 6) and len(few) == 6
    assert few == [row for row in rows if row in few] != rows[:6]
    assert rows_of(rows, None) == rows_of(rows, 99) == rows


def test_check_finds_everything_before_a_model_is_there(rows, spec):
    bad = [replace(rows[0], reference="none"), replace(rows[1], prompt_ids=()), rows[2]]
    with pytest.raises(DataError) as caught:
        check(bad, spec(metrics=["numeric_answer"]))
    assert [problem.where for problem in caught.value.problems] == ["rows.jsonl:1", "rows.jsonl:2"]
    check(bad, spec(metrics=["numeric_answer"], generate=False))
    with pytest.raises(UserError, match="unknown metric") as unknown:
        check(rows, spec(metrics=["exact_mtch"]))
    assert unknown.value.fix == "did you mean 'exact_match'?"


def test_nothing_heavy_is_imported_for_validation():
    program = (
        "import sys; from tunekit.core.registry import METRICS, TASKS; import tunekit.evaluate.run\n"
        "for registry in (METRICS, TASKS):\n"
        "    for name in registry.names: registry.load(name).Config\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
