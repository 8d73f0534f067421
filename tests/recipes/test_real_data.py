"""Real files through their recipes and the whole pipeline: each row's fate is what it must be, and training runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from real_for_tests import conversations, expected

from tunekit.data.ledger import Ledger
from tunekit.model.tokenizer import load_tokenizer

FILES = {
    "gsm8k": "math/gsm8k_train.jsonl",
    "huatuo": "sft/huatuo_med_zh.first6000.json",
    "oasst": "chat/oasst_en_tree.first80.jsonl",
    "toolcalls": "chat/lf_glaive_toolcall_en_demo.first240.json",
    "self_instruct": "sft/self_instruct_seed_tasks.jsonl",
}
LIMIT = {"gsm8k": 1500, "huatuo": 1500}  # the first rows of the large files: each run takes seconds
ROWS = {"gsm8k": 1500, "huatuo": 1500, "oasst": 80, "toolcalls": 240, "self_instruct": 175}
HELD_OUT = {"gsm8k": 200, "huatuo": 75, "oasst": 8, "toolcalls": 20, "self_instruct": 15}


@pytest.fixture(scope="module")
def runs(shared_data, run_recipe):
    """One run of each recipe: plan, record, and the ledger by the input's line."""
    made = {}

    def get(name):
        if name not in made:
            path = shared_data / FILES[name]
            limit = [f"data.train.0.limit={LIMIT[name]}"] if name in LIMIT else []
            plan, record = run_recipe(
                f"sft/{name}.yaml",
                "model.name='builtin:random?layers=2&hidden=64'", f"data.train.0.path={str(path)!r}",
                # the tokenizer of 2048 tokens cuts texts shorter than real ones: more rows are too long
                "data.max_drop_rate=0.2", "train.epochs=null", "train.max_steps=3", "train.batch_size=4",
                "train.micro_batch_size=2", "eval.every=null", *limit,
            )  # fmt: skip
            entries = sorted(Ledger.load(Path(plan.run_dir) / "ledger.parquet"), key=lambda e: e.origin.line)
            made[name] = plan, record, entries
        return made[name]

    return get


@pytest.mark.parametrize("name", FILES)
def test_it_trains(name, runs):
    plan, record, _ = runs(name)
    assert (record.status, record.exit_code, record.training.steps) == ("done", 0, 3)
    assert math.isfinite(record.training.final_loss) and 0 < record.training.final_loss < 12
    assert (Path(plan.run_dir) / "model" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("name", FILES)
def test_the_ledger_balances(name, runs):
    _, record, entries = runs(name)
    splits = record.data.splits
    for part in splits.values():
        assert part.kept + part.truncated + part.dropped + part.duplicate + part.unused == part.rows
    assert splits["train"].rows + splits["eval"].rows == len(entries) == ROWS[name]
    assert splits["eval"].kept + splits["eval"].truncated == splits["eval"].rows == HELD_OUT[name]


@pytest.mark.parametrize("name", FILES)
def test_every_rows_fate_and_tokens(name, runs, shared_data):
    plan, _, entries = runs(name)
    data = plan.recipe.data
    rows = conversations(name, shared_data / FILES[name])[: LIMIT.get(name)]
    tokenizer = load_tokenizer(plan.recipe.model)
    wanted = expected(tokenizer, rows, data.max_length, data.overlong, data.duplicates == "drop")
    # json lists are numbered by record, json lines by line: both count from 1 without gaps in these files
    assert [(number, entry.fate, entry.tokens) for number, entry in enumerate(entries, start=1)] == wanted


def test_the_repeated_tool_calls_by_hand(runs, shared_data):
    """QUIRKS.md counts 23 exact duplicates, 5=7, 34=75 and 38=87 among them; a copy of a row that is too long is too
    long itself."""
    _, _, entries = runs("toolcalls")
    fates = {number: (entry.fate, entry.detail) for number, entry in enumerate(entries, start=1)}
    first, repeated = {}, {}
    for number, row in enumerate(json.loads((shared_data / FILES["toolcalls"]).read_text()), start=1):
        key = json.dumps([row["conversations"], row["tools"]])
        if first.setdefault(key, number) != number:
            repeated[number] = first[key]
    assert len(repeated) == 23 and {7: 5, 75: 34, 87: 38}.items() <= repeated.items()
    for number, original in repeated.items():
        if fates[original][0] == "dropped":
            assert fates[number][0] == "dropped"
        else:
            assert fates[number][0] == "duplicate" and fates[number][1].endswith(f":{original}")
    assert {number for number, (fate, _) in fates.items() if fate == "duplicate"} <= repeated.keys()
    assert fates[75][0] == fates[87][0] == "duplicate"


def test_a_seed_task_whose_answer_begins_too_late_is_named(runs):
    _, record, entries = runs("self_instruct")
    lost = [entry for entry in entries if entry.fate == "dropped"]
    assert [(entry.origin.line, entry.reason) for entry in lost] == [(63, "no trained token within data.max_length")]
    assert record.data.splits["train"].reasons["no trained token within data.max_length"] == 1
