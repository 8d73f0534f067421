"""Two models in folders, questions of the embedded world, and evaluations of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The embedded model, and the same with noise in its weights: what tuning would have made of it."""
    import torch
    from transformers import AutoModelForCausalLM

    from tunekit.model.names import TINY

    place = tmp_path_factory.mktemp("models")
    shutil.copytree(TINY, place / "base")
    shutil.copytree(TINY, place / "tuned")
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    model.save_pretrained(place / "tuned")
    return place


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    """40 rows with a question and an answer, as conversations."""
    from tunekit.data import world

    path = tmp_path_factory.mktemp("rows") / "questions.jsonl"
    rows = world.rows("instructions", "held_out", 40)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def job(folders, tmp_path, monkeypatch):
    """A job from a recipe's value; answers are kept in the test's own folder."""
    from tunekit.core.progress import Silent
    from tunekit.exam.job import Job
    from tunekit.exam.recipe import check
    from tunekit.recipe.document import parse

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))

    def build(screen=None, target="evaluation", **value):
        usual = {"model": str(folders / "tuned"), "engine": {"batch_size": 8}}
        exam = check(parse(json.dumps(usual | value), "eval.yaml"))
        return Job(exam, Path(), tmp_path / target, screen or Silent())

    return build
