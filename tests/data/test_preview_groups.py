"""`tunekit data preview` of preference data and prompts: the prompt once, and each answer with what is trained."""

import pytest
from preparation_for_tests import TINY, write

from tunekit.cli.data import show
from tunekit.train import inputs

RECIPE = """\
method: sft
model: {name: "%s"}
data:
  train:
    - path: rows.jsonl
  max_length: 8
train: {max_steps: 1}
"""


@pytest.fixture
def preview(tmp_path, monkeypatch, capsys):
    def run(material, *rows):
        monkeypatch.setattr(inputs, "material_of", lambda method: material)
        write(tmp_path / "rows.jsonl", rows)
        (tmp_path / "recipe.yaml").write_text(RECIPE % TINY, encoding="utf-8")
        show(tmp_path / "recipe.yaml", None, 9, 0)
        return capsys.readouterr().out

    return run


def test_pairs(preview):
    out = preview(
        "pairs",
        {"prompt": "Who?", "chosen": "Ada did.", "rejected": "Bob.", "margin": 1.5},
        {"prompt": "Who?", "chosen": "Ada.", "rejected": "Ada."},
        {"prompt": "Who?", "chosen": "Ada.", "rejected": " "},
    )
    assert out.count("Who?") == 1 and out.count("«") == 2
    assert "«Ada did.<|im_end|>»" in out and "«Bob.<|im_end|>»" in out
    head = out.splitlines()[0]
    assert "rows.jsonl:1  prompt: " in head and "margin 1.5" in head and "(max_length 8)" in head
    assert "rows.jsonl:2  dropped: chosen and rejected are the same" in out
    assert "rows.jsonl:3  dropped: the rejected answer is empty" in out


def test_several_pairs_of_a_row(preview):
    out = preview("pairs", {"prompt": "Who?", "answers": ["Ada.", "Bob.", "Ada."], "scores": [3, 2, 1]})
    assert "some of its answers cannot be used: 1 of 3: chosen and rejected are the same" in out
    assert "rows.jsonl:1   1 of 2; prompt: " in out and "rows.jsonl:1   2 of 2; prompt: " in out


def test_judged_answers(preview):
    out = preview("judged", {"prompt": "Who?", "completion": "Bob.", "label": False})
    assert "bad:" in out and "«Bob.<|im_end|>»" in out and "good" not in out and "margin" not in out


def test_prompts(preview):
    out = preview("prompts", {"prompt": "Who?", "answer": "Ada", "level": 1}, {"prompt": "Why?"})
    assert "«" not in out and out.count("reference:") == 1
    assert out.rstrip().endswith("<|im_start|>assistant")


def test_texts_as_before(preview):
    out = preview("texts", {"prompt": "Who?", "completion": "Ada."})
    assert "«Ada.<|im_end|>»" in out and "prompt:" not in out and " trained (max_length 8)" in out
