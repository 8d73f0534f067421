"""The recipes for the models people use: each loads, and trains a tiny model of the same architecture."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "models"
ARCHITECTURE = {"qwen3": "qwen3", "llama3": "llama", "gemma3": "gemma3_text", "mistral": "mistral"}
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def test_every_family_has_both():
    assert sorted(f"{family}-{kind}" for family in ARCHITECTURE for kind in ("lora", "full")) == NAMES


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    talks = [
        [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"{n} is {n}. " * (n % 5)}]
        for n in range(1, 61)
        if n % 5
    ]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in talks))
    return path


AT_ONCE = ("gemma3-lora", "llama3-full")
"""Those of the quick suite."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in AT_ONCE else pytest.mark.slow) for name in NAMES]
)
def test_it_trains_a_model_of_its_architecture(name, rows, run_recipe):
    family, kind = name.split("-")
    plan, record = run_recipe(
        f"models/{name}.yaml",
        f"model.name='builtin:random?arch={ARCHITECTURE[family]}&layers=2&hidden=64&vocab=2048'",
        f"data.train.0.path={str(rows)!r}",
        "train.epochs=null", "train.max_steps=2", "train.batch_size=2", "train.micro_batch_size=1",
        "data.max_length=256", "eval.every=1",
    )  # fmt: skip
    assert (record.status, record.exit_code, record.training.steps) == ("done", 0, 2)
    assert math.isfinite(record.training.final_loss) and math.isfinite(record.training.final_eval_loss)
    saved = {path.name for path in (Path(plan.run_dir) / "model").iterdir()}
    assert ("adapter_model.safetensors" if kind == "lora" else "model.safetensors") in saved
    assert (record.model.trainable < record.model.parameters) == (kind == "lora")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_short_and_every_number_has_its_reason(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    assert len(text.splitlines()) <= 40
    assert re.fullmatch(r"[\w-]+/[\w.-]+", YAML(typ="safe").load(text)["model"]["name"])
    train = text.partition("\ntrain:\n")[2].partition("\n\n")[0].splitlines()
    assert train and all(" # " in line for line in train)
