"""`tunekit adapters`, and the page that is written from the same facts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tunekit.cli.app import app
from tunekit.core.registry import ADAPTERS
from tunekit.model.adapter_facts import Counter, kind_of, own_keys
from tunekit.model.adapter_page import MARK, page

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"
# hidden, inner and layers of the embedded model: projections of attention are square
HIDDEN, INNER, LAYERS, RANK = 192, 512, 4, 16


def run(*words):
    return CliRunner().invoke(app, ["adapters", *words], env={"COLUMNS": "160"})


def told(*words):
    done = run(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_every_kind_is_listed_once():
    value = told()
    assert [kind["kind"] for kind in value["kinds"]] == list(ADAPTERS.names)
    assert all((kind["help"] and kind["measured"]) or kind["refused"] for kind in value["kinds"])
    screen = run().stdout
    assert all(f"\n{name} " in screen for name in ADAPTERS.names)


def test_the_keys_of_a_kind_are_those_of_its_block():
    (kind,) = told("lora")["kinds"]
    keys = {key["name"]: key for key in kind["keys"]}
    assert list(keys) == list(ADAPTERS.load("lora").Config.model_fields)
    assert keys["r"] == {"name": "r", "values": "whole number (>= 1 and <= 4,096)", "default": "`16`", "help": "rank"}
    screen = run("lora").stdout
    assert all(name in screen for name in keys) and "4 bits, 8 bits, GPT-2, merges" in screen


def test_a_kind_of_peft_s_own_shows_peft_s_fields():
    names = {key["name"] for key in told("c3a")["kinds"][0]["keys"]}
    assert {"kind", "start", "block_size", "init_weights", "targets"} <= names
    assert not names & {"task_type", "peft_type", "base_model_name_or_path", "inference_mode"}


def test_a_refused_kind_says_why():
    assert "refused: " in run("xlora").stdout
    assert told("xlora")["kinds"][0]["refused"]


def test_an_unknown_kind_gets_the_nearest():
    done = run("ln_tunign")
    assert done.exit_code == 2 and "did you mean 'ln_tuning'?" in done.stderr


@pytest.mark.parametrize(
    ("kind", "by_hand"),
    [
        ("lora", LAYERS * RANK * (4 * 2 * HIDDEN + 3 * (HIDDEN + INNER))),
        ("prompt", 20 * HIDDEN),
        ("prefix", 20 * LAYERS * 2 * HIDDEN),
        ("trainable_tokens", HIDDEN),
        ("freeze", 4 * HIDDEN**2 + 3 * HIDDEN * INNER + 2 * HIDDEN),
    ],
)
def test_what_a_kind_trains_is_counted_by_hand(kind, by_hand):
    (found,) = told(kind, "--model", "builtin:tiny")["kinds"]
    assert (found["trained"], found["bytes"]) == (by_hand, by_hand * 16)


def test_a_large_model_is_counted_without_its_weights(tmp_path):
    """LoRA on a Llama of 8 billion parameters: the published shape, of which nothing lies in memory."""
    import torch
    from transformers import LlamaConfig

    LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, tie_word_embeddings=False,
    ).save_pretrained(tmp_path)  # fmt: skip
    counter = Counter(str(tmp_path))
    assert counter.parameters == 8_030_261_248
    assert {parameter.device for parameter in counter._model.parameters()} == {torch.device("meta")}
    each = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    assert counter.trained("lora") == 32 * RANK * each
    assert "made from the weights" in told("frod", "--model", str(tmp_path))["kinds"][0]["uncounted"]


def test_what_cannot_be_counted_says_why():
    (found,) = told("llama_adapter", "--model", "builtin:random?arch=qwen3&layers=2&hidden=32&heads=2")["kinds"]
    assert found["trained"] is None and "no form for qwen3" in found["uncounted"]
    assert run("lora", "--model", "nowhere/at/all").exit_code == 2


LIGHT = """
import sys
from tunekit.cli.app import main
try:
    main()
except SystemExit as end:
    assert end.code in (0, None), end.code
heavy = {"torch", "transformers", "peft", "numpy", "datasets"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize("words", [["adapters"], ["adapters", "lora"], ["adapters", "waveft", "--json"]])
def test_names_help_and_keys_need_nothing_heavy(words):
    done = subprocess.run([sys.executable, "-c", LIGHT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_is_what_is_generated():
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text), "python -m tunekit.model.adapter_page docs/adapters.md"


def test_the_page_keeps_what_is_written_by_hand():
    new = page(f"# Mine\n\n{MARK}old\n")
    assert new.startswith(f"# Mine\n\n{MARK}\n## The kinds\n") and "old\n" not in new[:200]


def test_shared_keys_are_told_once():
    assert {key.name for key in own_keys("prefix")} & {"kind", "start"} == set()
    assert "r" in {key.name for key in own_keys("lora")}
    assert kind_of("layerwise").packages == () and kind_of("lora").tended and not kind_of("c3a").tended
