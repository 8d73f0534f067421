"""What `tunekit plan` shows and refuses of methods that learn from preferences and rewards, as its user sees it."""

from __future__ import annotations

import json

import policy_for_tests as policies
import pytest
from typer.testing import CliRunner

from tunekit.cli.app import app
from tunekit.core.errors import DataError

MODEL = "model: {name: 'builtin:random?layers=2&hidden=32&heads=2'}\n"


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """The exit code and the words of `tunekit plan` on a recipe's text."""
    monkeypatch.chdir(tmp_path)

    def plan(text, *sets):
        (tmp_path / "recipe.yaml").write_text(MODEL + text, encoding="utf-8")
        found = CliRunner().invoke(app, ["plan", "recipe.yaml", *(part for one in sets for part in ("--set", one))])
        return found.exit_code, " ".join(found.output.split())

    return plan


def recipe(method, rows, block):
    return f"method: {method}\ndata: {{train: [{{path: {rows}}}], max_length: 128}}\n{method}: {json.dumps(block)}\n"


def test_rewards_with_their_weights_and_what_a_step_is(planned, tmp_path):
    rows = policies.write_prompts(tmp_path / "rows", 8)
    reward = [
        {"function": f"{rows.parent / 'mine.py'}:vowels", "weight": 0.5},
        {"kind": "length", "max": 16, "name": "short", "weight": -2},
    ]
    code, told = planned(recipe("grpo", rows, {"reward": reward, "generations": 4, "passes": 2}), "train.batch_size=4")
    assert code == 0
    assert f"reward vowels: 0.5 x function, function {rows.parent / 'mine.py'}:vowels" in told
    assert "short: -2 x length, max 16" in told
    assert "answers 4 to each prompt, of 256 tokens at most" in told
    assert "reference none (beta 0)" in told and "grpo options loss dapo" in told
    assert "steps 4, each on 4 prompts with 4 answers each; each prompt is learnt from 2 times" in told  # 8 / 4 x 2
    assert "train: 8 rows = 8 kept; 8 prompts of" in told and "8 prompts to answer (" in told
    assert "tokens trained" not in told
    code, told = planned(recipe("grpo", rows, {"reward": reward, "beta": 0.1, "reference": "base"}))
    assert "reference the model without its adapter, beta 0.1 (k3)" in told


@pytest.mark.parametrize(
    ("method", "block", "words"),
    [
        ("dpo", {}, "dpo options beta 0.1, loss sigmoid, reference initial (the policy as it begins)"),
        (
            "dpo",
            {"beta": 0.3, "loss": {"sigmoid": 1.0, "sft": 0.2}, "label_smoothing": 0.1},
            "beta 0.3, loss {'sigmoid': 1.0, 'sft': 0.2}, reference initial (the policy as it begins), "
            "label_smoothing 0.1",
        ),
        ("kto", {"desirable_weight": 1.5}, "loss kto, desirable_weight 1.5, reference initial"),
        ("simpo", {}, "simpo options beta 2"),
        ("reward", {"centre": 0.01}, "reward options centre 0.01"),
    ],
)
def test_the_options_of_a_preference_method(method, block, words, planned, preferences):
    code, told = planned(recipe(method, preferences(method), block))
    assert code == 0 and words in told
    if method == "kto":
        assert "11 answers (7 good, 4 bad) to train" in told


def test_sft_has_no_options_to_show(planned, talks):
    code, told = planned(f"method: sft\ndata: {{train: [{{path: {talks}}}], max_length: 128}}\n")
    assert code == 0 and "options" not in told and "tokens trained" in told


def test_missing_right_answers_are_refused_by_the_plan_and_before_a_model_is_loaded(
    planned, tmp_path, plan_of, write_rows
):
    from pathlib import Path

    from tunekit.core.progress import Silent
    from tunekit.train.inputs import Inputs

    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"{number}?"} for number in range(30)])
    code, told = planned(recipe("rloo", rows, {"reward": [{"kind": "exact_match"}]}))
    assert code == 3
    assert "reward 'exact_match': the row has no right answer, in 30 rows" in told
    assert "rows.jsonl:1, " in told and "and 25 more" in told
    plan = plan_of("rloo", data__train=[{"path": str(rows)}], rloo={"reward": [{"kind": "exact_match"}]})
    inputs = Inputs(plan.recipe, Path(plan.recipe_folder))
    for _ in range(2):  # the second time it is found prepared
        with pytest.raises(DataError, match="in 30 rows"):
            inputs.prepare(Silent(), tmp_path / "data")
    kept = plan_of("rloo", data__train=[{"path": str(rows)}], rloo={"reward": [{"kind": "ended"}]})
    Inputs(kept.recipe, Path(kept.recipe_folder)).prepare(Silent(), tmp_path / "data")


@pytest.mark.parametrize(("good", "bad"), [("true", "false"), ("Yes", "no"), ("good", "BAD"), ("1", "0")])
def test_labels_in_words_are_verdicts_and_are_counted(good, bad, planned, tmp_path, write_rows, verdict_of):
    rows = [verdict_of(number) for number in range(11)]
    path = write_rows(tmp_path / "words.jsonl", [row | {"label": good if row["label"] else bad} for row in rows])
    code, told = planned(recipe("kto", path, {}))
    assert code == 0 and "11 answers (7 good, 4 bad) to train" in told


def test_another_word_is_told_with_the_words_that_are_known(planned, tmp_path, write_rows, verdict_of):
    rows = [verdict_of(number) | ({"label": "superb"} if number == 3 else {}) for number in range(11)]
    path = write_rows(tmp_path / "words.jsonl", rows)
    text = recipe("kto", path, {}).replace("train: [{path: ", "train: [{format: judged, path: ")
    code, told = planned(text, "data.max_drop_rate=0")
    assert code == 3
    assert "column 'label': true or false expected, or a word such as good or bad, yes or no" in told
    assert "found the text 'superb'" in told
