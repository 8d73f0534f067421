"""A training after the pruning: its model is the artefact; what it cannot mend or cannot start is told before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from tunekit.cli.app import app
from tunekit.compress import fresh
from tunekit.data import world
from tunekit.model.artefact import verify

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in world.rows("instructions", "train", 64)))
    return path


@pytest.fixture
def recipe(rows, tmp_path):
    """A training of four steps, with or without an adapter."""

    def write(**blocks):
        given = {"method": "sft", "data": {"train": [{"path": str(rows)}], "max_length": 96}}
        given["train"] = {"max_steps": 4, "batch_size": 8, "learning_rate": 2e-3, "threads": 1, "precision": "fp32"}
        path = tmp_path / "heal.yaml"
        path.write_text(json.dumps(given | blocks))
        return path

    return write


def run(*words):
    small = ["proof.rows=6", "proof.answers=1", "proof.new_tokens=4", "calibration.rows=8", "calibration.length=64"]
    return CliRunner().invoke(app, ["prune", *map(str, words), *(f"--set={value}" for value in small)])


@pytest.mark.parametrize("adapter", [False, True])
def test_the_healed_model_is_the_artefact(adapter, model, rows, recipe, tmp_path, here):
    blocks = {"adapter": {"kind": "lora", "r": 8, "targets": "all-linear"}} if adapter else {}
    (model / "LICENSE").write_text("the licence")
    held = rows.with_name("held.jsonl")
    held.write_text("".join(json.dumps(row) + "\n" for row in world.rows("instructions", "held_out", 6)))
    words = ("--way", "depth", "--layers", "1", "--calib", rows, "--data", held, "--output", tmp_path / "small")
    done = run(model, *words, "--heal", recipe(**blocks))
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "small" / "prune.json").read_text())
    assert record["healing"]["method"] == "sft"
    assert record["perplexity"][0] < record["healing"]["before"]["perplexity"][0]
    tensors = load_file(tmp_path / "small" / "model.safetensors")
    assert {str(value.dtype) for value in tensors.values()} == {"torch.bfloat16"}, "the source's type"
    assert not any(".3." in name for name in tensors) and record["size"] == record["expected_size"]
    kept = {path.name for path in (tmp_path / "small").iterdir()}
    assert {"LICENSE", "heal", "prune.json", "MANIFEST.json", "tokenizer.json", "chat_template.jinja"} <= kept
    assert not kept & {"merge.json", "adapter_config.json"} and "README.md" in kept
    assert (tmp_path / "small" / "heal" / "metrics.jsonl").exists()
    assert verify(tmp_path / "small")["pruned"] == "depth"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heal.yaml", "model", "small"]


@pytest.mark.parametrize(
    ("way", "blocks", "told"),
    [
        (("wanda", "--sparsity", "0.5"), {}, "training would fill the zeros of 'wanda' again"),
        (("depth", "--layers", "1"), {"data": {"train": [{"path": "nowhere.jsonl"}]}}, "nowhere.jsonl"),
        (("depth", "--layers", "1"), {"trainn": {}}, "did you mean 'train'?"),
    ],
)
def test_what_cannot_heal_is_told_before_anything_is_pruned(
    way, blocks, told, model, rows, recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(fresh, "run", lambda *_: pytest.fail("something was measured or made"))
    done = run(model, "--way", *way, "--calib", rows, "--output", tmp_path / "small", "--heal", recipe(**blocks))
    assert done.exit_code in (2, 3) and told in " ".join(done.output.split()), done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heal.yaml", "model"]


def test_a_training_that_fails_leaves_nothing(model, rows, recipe, tmp_path, here):
    words = ("--way", "depth", "--layers", "1", "--calib", rows, "--output", tmp_path / "small")
    data = {"train": [{"path": str(rows)}], "max_length": 8}
    done = run(model, *words, "--heal", recipe(data=data))
    assert done.exit_code == 3 and "pruning by depth" in done.output, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heal.yaml", "model"]


def test_rows_that_the_healing_trains_on_prove_nothing(model, rows, recipe, tmp_path, here):
    calib = rows.with_name("other.jsonl")
    calib.write_text("".join(json.dumps(row) + "\n" for row in world.rows("instructions", "held_out", 12)))
    words = ("--way", "depth", "--layers", "1", "--calib", calib, "--data", rows, "--output", tmp_path / "small")
    done = run(model, *words, "--heal", recipe())
    told = " ".join(done.output.split())
    assert done.exit_code == 3 and "6 of the 6 rows that it would be proven on are rows that the healing trains" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heal.yaml", "model"]


@pytest.mark.slow
def test_a_quarter_of_the_depth_healed_has_most_of_the_score_again(tmp_path):
    """The quickstart's model without one of its four layers: exact match on held-out questions of the demo world."""
    command = CliRunner()

    def invoke(*words):
        done = command.invoke(app, [*map(str, words), "--quiet"])
        assert done.exit_code == 0, done.output

    def score(model, name):
        invoke("eval", "--model", model, "--baseline", "none", "--data", rows, "--metrics", "exact_match",
               "--set", "contamination.check=false", "--set", "forgetting.check=false",
               "--output", tmp_path / name)  # fmt: skip
        (task,) = json.loads((tmp_path / name / "record.json").read_text())["tasks"]
        return task["tuned"]["value"]

    rows = tmp_path / "held_out.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in world.rows("instructions", "held_out", 400)))
    invoke("sft", RECIPES / "quickstart.yaml", "--output", tmp_path / "run", "--set", "eval.generate=false")
    pruning = ("prune", tmp_path / "run", "--way", "depth", "--layers", "1", "--set", "proof.answers=2")
    invoke(*pruning, "--output", tmp_path / "short")
    invoke(*pruning, "--heal", RECIPES / "prune" / "heal.yaml", "--output", tmp_path / "healed")
    found = {name: score(tmp_path / name, f"eval-{name}") for name in ("run", "short", "healed")}
    print(f"measured: exact match {found}")
    assert found["short"] < found["run"] - 0.03
    assert found["healed"] - found["short"] >= 0.8 * (found["run"] - found["short"])
