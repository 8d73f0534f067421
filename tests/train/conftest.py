"""Plans, trainers and whole runs on tiny models, made in this process; the data cache is each session's own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

WORDS = [
    "red", "blue", "green", "seven", "eleven", "cat", "dog", "river",
    "stone", "apple", "quickly", "under", "the", "moon", "walks", "sings", "counts",
]  # fmt: skip


def talk(number: int, turns: int = 1) -> dict:
    """A conversation; its length differs from row to row, its text from every other row's."""
    messages = []
    for turn in range(turns):
        asked = " ".join(WORDS[(number * 3 + turn + i) % len(WORDS)] for i in range(2 + number % 5))
        said = " ".join(WORDS[(number * 5 + turn * 2 + i) % len(WORDS)] for i in range(1 + number * 7 % 9))
        messages += [{"role": "user", "content": f"{number} {asked}?"}, {"role": "assistant", "content": said}]
    return {"messages": messages}


@pytest.fixture(scope="session")
def talk_of():
    """One conversation by its number."""
    return talk


@pytest.fixture(scope="session")
def note():
    """Leaves a measured value for the reader: shown with `pytest -rP` or `-s`."""
    return lambda text: print(f"measured: {text}")


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
def write_rows():
    """Writes rows as json lines."""

    def write(path: Path, rows) -> Path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def talks(tmp_path_factory, write_rows):
    """A file of 23 conversations of 1 to 3 turns, ragged in length."""
    return write_rows(tmp_path_factory.mktemp("talks") / "talks.jsonl", [talk(n, 1 + n % 3) for n in range(23)])


@pytest.fixture(scope="session")
def plan_of(talks, tmp_path_factory):
    """A plan from dotted keys; what is not given is small, deterministic and on one thread."""
    from tunekit.plan.hardware import probe
    from tunekit.plan.resolve import resolve
    from tunekit.recipe.document import override, parse
    from tunekit.recipe.load import check

    defaults = {
        "model.name": "builtin:random?layers=2&hidden=32&heads=2",
        "data.train": [{"path": str(talks)}],
        "data.max_length": 128,
        "train.max_steps": 1,
        "train.batch_size": 8,
        "train.learning_rate": 1e-2,
        "train.warmup": 0,
        "train.log_every": 1,
        "train.threads": 1,
        "train.precision": "fp32",  # the same on every machine
        "eval.baseline": False,
    }

    def build(method: str = "sft", **sets):
        folder = tmp_path_factory.mktemp("run")
        named = defaults | {"output.dir": str(folder / "run")} | {k.replace("__", "."): v for k, v in sets.items()}
        given = [f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None]
        document = override(parse(f"method: {method}\n", "recipe.yaml"), given)
        return resolve(check(document), folder / "recipe.yaml", probe())

    return build


@pytest.fixture(scope="session")
def run_plan():
    """Runs a plan through the pipeline; returns its record."""
    from tunekit.core.progress import Silent
    from tunekit.train.pipeline import Job, run

    return lambda plan: run(Job(plan, f"method: {plan.method}\n"), Silent())


@pytest.fixture(scope="session")
def session_of():
    """A session with its trainer built and attended, on data prepared in the cache; nothing has been trained."""
    from tunekit.core.progress import Silent
    from tunekit.model.load import load_model
    from tunekit.train.inputs import Inputs
    from tunekit.train.session import Session

    def build(plan):
        prepared = Inputs(plan.recipe, Path(plan.recipe_folder)).prepare(Silent(), Path(plan.run_dir) / "data")
        session = Session(plan, prepared, Silent())
        loaded = load_model(plan)
        return session, session._trainer(loaded)

    return build


@pytest.fixture(scope="session")
def logged():
    """The metrics of a finished run, one dict a line."""
    return lambda plan: [
        json.loads(line) for line in (Path(plan.run_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
