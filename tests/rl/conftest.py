"""Answers to be rewarded, reward models of random weights, and recipes with rewards."""

import shutil
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
