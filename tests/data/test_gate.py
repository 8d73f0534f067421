"""Every fault the gate guards against, made with crafted data and templates, packed and not."""

from __future__ import annotations

import pytest
from preparation_for_tests import TINY, Made, recipe, talk, write

from tunekit.core.errors import DataError
from tunekit.data.gate import NO_END, Gate
from tunekit.data.store import join

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ENDLESS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
END_OUTSIDE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
)
TWO_BOS = "{{ bos_token }}{{ bos_token }}" + CHATML
PACKING = pytest.mark.parametrize("packing", [False, True])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def refused(tmp_path, rows, packing, template="", **sets):
    """The error that preparing gives."""
    path = write(tmp_path / "rows.jsonl", rows)
    if template:
        (tmp_path / "template.jinja").write_text(template, encoding="utf-8")
        sets["model__chat_template"] = str(tmp_path / "template.jinja")
    with pytest.raises(DataError) as caught:
        Made(recipe({"path": str(path)}, data__packing=packing, **sets), tmp_path)
    assert caught.value.exit_code == 3
    return caught.value.problems[0]


@PACKING
def test_no_end_of_turn(packing, tmp_path):
    problem = refused(tmp_path, [talk(n) for n in range(3)], packing, ENDLESS)
    assert problem.what.startswith("no end-of-turn token follows the trained text")
    assert "rows.jsonl:1" in problem.where and "chat template" in problem.fix


@PACKING
def test_no_end_of_turn_hides_behind_no_other_row(packing, tmp_path):
    """A document always has its end; a conversation packed beside it must have one as well."""
    text = write(tmp_path / "text.jsonl", [{"text": f"some text {n}"} for n in range(8)])
    path = write(tmp_path / "talks.jsonl", [talk(n) for n in range(3)])
    (tmp_path / "template.jinja").write_text(ENDLESS, encoding="utf-8")
    wanted = recipe(text, path, data__packing=packing, model__chat_template=str(tmp_path / "template.jinja"))
    with pytest.raises(DataError, match="no end-of-turn token follows the trained text") as caught:
        Made(wanted, tmp_path)
    assert all(f"talks.jsonl:{line}" in caught.value.problems[0].where for line in (1, 2, 3))


@PACKING
def test_end_of_turn_not_trained(packing, tmp_path):
    problem = refused(tmp_path, [talk(n) for n in range(3)], packing, END_OUTSIDE)
    assert problem.what.startswith("the end-of-turn token of a trained turn is not trained")
    assert "generation" in problem.fix


@PACKING
def test_two_beginnings(packing, tmp_path, monkeypatch):
    from tunekit.model import tokenizer as tokenizers
    from tunekit.train import inputs

    def with_bos(block):
        made = tokenizers.load_tokenizer(block)
        made.bos_token = "<|endoftext|>"
        return made

    monkeypatch.setattr(inputs, "load_tokenizer", with_bos)
    problem = refused(tmp_path, [talk(n) for n in range(7)], packing, TWO_BOS)
    assert problem.what.startswith("the text begins with two beginning-of-sequence tokens (7 rows)")
    Made(recipe(tmp_path / "rows.jsonl", data__packing=packing), tmp_path)  # the tokenizer's own template has none


@PACKING
def test_tokens_outside_the_embedding(packing, tmp_path):
    problem = refused(tmp_path, [talk(n) for n in range(3)], packing, model__name=f"{TINY}&vocab=100")
    assert "lies outside the model's embedding of 100 rows" in problem.what


def example(**changes):
    """A final example that has no fault."""
    return {
        "input_ids": [1, 7, 8, 2], "labels": [-100, -100, 8, 2], "turn_ends": [3], "truncated": False, "starts": [0],
    } | changes  # fmt: skip


FAULTS = {
    "no token of the example is trained": {"labels": [-100] * 4, "truncated": True, "turn_ends": []},
    "the text begins with two beginning-of-sequence tokens": {"input_ids": [1, 1, 8, 2]},
    "no end-of-turn token follows the trained text": {"turn_ends": [NO_END]},
    "the end-of-turn token of a trained turn is not trained": {"labels": [-100, -100, 8, -100]},
    "token 9 lies outside the model's embedding of 9 rows": {"input_ids": [1, 7, 8, 9]},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone(fault):
    gate = Gate(vocabulary=9, bos_id=1)
    gate.look(example(), lambda: "good:1")
    gate.close()
    gate.look(example(**FAULTS[fault]), lambda: "bad:1")
    with pytest.raises(DataError) as caught:
        gate.close()
    assert [(p.what, p.where) for p in caught.value.problems] == [(f"{fault} (1 rows)", "bad:1")]


@pytest.mark.parametrize("fault", list(FAULTS)[:4])
def test_each_fault_in_the_second_of_two_packed_examples(fault):
    shared = {"number": 0, "prompt_tokens": 2, "prompt": "", "reference": ""}
    gate = Gate(vocabulary=9, bos_id=1)
    gate.look(join([shared | example(), shared | example(**FAULTS[fault])], isolated=True), lambda: "a:1, a:2")
    with pytest.raises(DataError, match=fault):
        gate.close()


def test_all_faults_are_told_at_once_and_rows_beyond_five_are_counted():
    gate = Gate(vocabulary=9, bos_id=1)
    for number in range(8):
        gate.look(example(turn_ends=[NO_END], input_ids=[1, 1, 8, 2]), lambda n=number: f"rows:{n}")
    with pytest.raises(DataError) as caught:
        gate.close()
    assert len(caught.value.problems) == 2
    assert caught.value.problems[0].where == "rows:0, rows:1, rows:2, rows:3, rows:4 and 3 more"
