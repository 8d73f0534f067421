"""Answers to be rewarded, reward models of random weights, and recipes with rewards."""

import importlib.util
import os
import shutil
import signal
from pathlib import Path

import pytest

from tunekit.core.types import Message
from tunekit.rl.contract import Answer


@pytest.fixture
def answer():
    """Makes an answer; what is not said is empty."""

    def make(text="", *, tokens=None, ended=True, reference="", where="rows.jsonl:1", prompt="Why?", **columns):
        length = len(text.split()) + 1 if tokens is None else tokens
        return Answer(prompt, (Message("user", prompt),), text, length, ended, reference, columns, where)

    return make


@pytest.fixture
def user_file(tmp_path):
    """Writes a Python file of the user and gives its place."""

    def write(text, name="mine.py"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def blocks():
    """The blocks of a recipe's text, as a method's options would hold them."""
    from pydantic import create_model

    from tunekit.recipe import load
    from tunekit.recipe.document import parse
    from tunekit.recipe.schema import Block
    from tunekit.rl.rewarding import RewardsField

    options = create_model("Options", __base__=Block, reward=(RewardsField, ...))
    recipe = create_model("StubRecipe", __base__=Block, stub=(options, ...))

    def read(text):
        lines = "".join(f"    - {line}\n" for line in text.strip().splitlines())
        document = parse(f"stub:\n  reward:\n{lines}", "recipe.yaml")
        found, problems = load.typed(document, recipe, dict(document.value))
        load.refuse(problems)
        return found.stub.reward

    return read


@pytest.fixture(scope="session")
def scorer(tmp_path_factory):
    """Saves a reward model of random weights with the embedded tokenizer; the folder."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from tunekit.model.names import TINY

    place = tmp_path_factory.mktemp("scorers")

    def make(kind="llama", labels=1, cls=AutoModelForSequenceClassification):
        folder = place / f"{kind}-{labels}-{cls.__name__}"
        if folder.exists():
            return folder
        shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1,
                 "intermediate_size": 64, "max_position_embeddings": 256}  # fmt: skip
        if kind == "gpt2":
            shape = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 256}
        if kind == "bert":
            shape |= {"hidden_size": 32}
        config = AutoConfig.for_model(kind, vocab_size=2048, pad_token_id=0, bos_token_id=None, eos_token_id=1, **shape)
        config.num_labels = labels
        torch.manual_seed(7)
        model = cls.from_config(config)
        with torch.no_grad():  # scores of the size of real ones, so that a wrong place shows
            for name, parameter in model.named_parameters():
                if "norm" not in name and "ln_" not in name:
                    parameter.normal_(std=0.2)
        model.save_pretrained(folder)
        for file in Path(TINY).glob("*"):
            if file.name.startswith("tokenizer") or file.suffix == ".jinja":
                shutil.copy(file, folder)
        return folder

    return make


def _of_train():
    """The fixtures of the tests of training: plans, sessions and runs on tiny models."""
    spec = importlib.util.spec_from_file_location("train_fixtures", Path(__file__).parents[1] / "train" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_train = _of_train()
quiet_machine, write_rows, note, talks = _train.quiet_machine, _train.write_rows, _train.note, _train.talks
plan_of, run_plan, session_of, logged = _train.plan_of, _train.run_plan, _train.session_of, _train.logged
WORDS = _train.WORDS


def said(seed, count):
    """Words by a number; other numbers, other words."""
    return " ".join(WORDS[(seed * 7 + at * (1 + seed % 5)) % len(WORDS)] for at in range(count))


def pair(number):
    """A pair whose prompt and answers differ in length from row to row; each third has a margin."""
    row = {
        "prompt": [{"role": "user", "content": f"{number} {said(number, 1 + number * 5 % 11)}?"}],
        "chosen": [{"role": "assistant", "content": said(number + 3, 1 + number * 3 % 7)}],
        "rejected": [{"role": "assistant", "content": said(number + 40, 1 + number * 5 % 9) + " no"}],
    }
    return row | ({"margin": 0.25 * (number % 4)} if number % 3 == 0 else {})


def verdict(number):
    """A judged answer; each third is bad."""
    turns = pair(number)
    return {"prompt": turns["prompt"], "completion": turns["chosen"], "label": number % 3 != 0}


@pytest.fixture(scope="session")
def pair_of():
    """One pair by its number."""
    return pair


@pytest.fixture(scope="session")
def verdict_of():
    """One judged answer by its number."""
    return verdict


@pytest.fixture(scope="session")
def preferences(tmp_path_factory, write_rows):
    """Files by method: 11 ragged pairs, or as many judged answers."""
    folder = tmp_path_factory.mktemp("preferences")
    pairs = write_rows(folder / "pairs.jsonl", [pair(number) for number in range(11)])
    judged = write_rows(folder / "judged.jsonl", [verdict(number) for number in range(11)])
    return lambda method: judged if method == "kto" else pairs


@pytest.fixture(scope="session")
def preference_plan(plan_of, preferences):
    """`plan_of` for a method that learns from preferences; ``limit``: so many rows of the file."""

    def build(method, limit=None, **sets):
        source = {"path": str(preferences(method))} | ({"limit": limit} if limit else {})
        return plan_of(method, **({"data__train": [source], "train__schedule": "constant"} | sets))

    return build


@pytest.fixture(scope="session")
def ready_of(session_of):
    """A session and its trainer as training finds it: the reference is there; nothing has been trained."""
    from tunekit.core.progress import Silent

    def build(plan):
        session, trainer = session_of(plan)
        trainer.ready(Silent())
        return session, trainer

    return build


@pytest.fixture
def ask_in(monkeypatch):
    """Sends this process a signal while something is done for the n-th time in a step; what is done is kept."""
    from tunekit.train.session import Session

    build = Session.build

    def arm(what, step, times):
        done = []

        def armed(self):
            trainer = build(self)
            pulse = trainer.pulse

            def told(words):
                pulse(words)
                if self.checkpoint is None and trainer.state.global_step == step and trainer.optimizer is not None:
                    done.append(words)
                    if done.count(what) == times and words == what:
                        os.kill(os.getpid(), signal.SIGTERM)

            trainer.pulse = told
            return trainer

        monkeypatch.setattr(Session, "build", armed)
        return done

    return arm
