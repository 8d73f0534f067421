"""Learning rates of recipes that name none: TRL's defaults for all weights, ten times that for LoRA."""

from __future__ import annotations

import dataclasses

import pytest

from tunekit.recipe.document import parse
from tunekit.recipe.load import check
from tunekit.recipe.rates import why_rate

ROWS = "data: {train: [{path: a.jsonl}]}\n"


def rate(method, more="", model="org/name"):
    reward = f"{method}: {{reward: [{{kind: length, max: 200}}]}}\n" if method in ("ppo", "grpo", "rloo") else ""
    text = f"method: {method}\nmodel: {{name: '{model}'}}\n{ROWS}{reward}{more}"
    recipe = check(parse(text, "r.yaml"))
    return recipe.train.learning_rate, why_rate(recipe)


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "grpo", "rloo"])
def test_all_weights_have_trls_default(method):
    """TRL's ORPO, CPO, PPO and GKD have none of their own kind; its reward trainer's is one for LoRA."""
    trl = pytest.importorskip("trl", reason="the defaults are TRL's")
    fields = {field.name: field for field in dataclasses.fields(getattr(trl, f"{method.upper()}Config"))}
    assert rate(method)[0] == pytest.approx(fields["learning_rate"].default)


@pytest.mark.parametrize(
    ("method", "more", "model", "expected"),
    [
        ("sft", "", "org/name", 2e-5),
        ("sft", "", "builtin:tiny", 2e-4),
        ("pretrain", "", "builtin:random?layers=2", 1e-3),
        ("pretrain", "", "builtin:tiny?init=random", 1e-3),
        ("sft", "adapter: {kind: lora}\n", "org/name", 2e-4),
        ("sft", "adapter: {kind: prompt}\n", "org/name", 3e-2),
        ("dpo", "adapter: {kind: lora}\n", "org/name", 1e-5),
        ("dpo", "adapter: {kind: ia3}\n", "org/name", 5e-4),
        ("orpo", "", "org/name", 1e-5),
        ("reward", "adapter: {kind: lora}\n", "org/name", 1e-4),
        ("ppo", "", "org/name", 1e-6),
    ],
)
def test_the_method_and_what_is_trained_say_it(method, more, model, expected):
    found, why = rate(method, more, model)
    assert found == pytest.approx(expected)
    kind = more.partition("kind: ")[2].strip("}\n")
    assert why == f"usual for {method} of {kind or 'all weights'}"


def test_one_that_is_named_stays():
    assert rate("dpo", "train: {learning_rate: 3e-4}\n") == (3e-4, "")
