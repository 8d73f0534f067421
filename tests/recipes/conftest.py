"""Recipes as users have them, run through the whole pipeline in this process on models of a few thousand weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture(scope="session", autouse=True)
def quiet_machine(tmp_path_factory):
    """One thread, no network, and a data cache of our own."""
    import torch

    before = {name: os.environ.get(name) for name in ("HF_HOME", "HF_HUB_OFFLINE")}
    os.environ |= {"HF_HOME": str(tmp_path_factory.mktemp("hf")), "HF_HUB_OFFLINE": "1"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for name, value in before.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def run_recipe(tmp_path_factory):
    """Runs a recipe of the repository with overrides; returns the plan and the record."""
    from tunekit.core.progress import Silent
    from tunekit.plan.hardware import probe
    from tunekit.plan.resolve import resolve
    from tunekit.recipe.load import load
    from tunekit.train.pipeline import Job, run

    def make(name: str, *overrides: str):
        path = RECIPES / name
        folder = tmp_path_factory.mktemp("run") / "run"
        fast = ("train.threads=1", "train.log_every=1", "eval.baseline=false", "eval.generate=false", "eval.limit=8")
        recipe = load(path, overrides=[*fast, f"output.dir={str(folder)!r}", *overrides])
        plan = resolve(recipe, path, probe())
        return plan, run(Job(plan, path.read_text(encoding="utf-8")), Silent())

    return make
