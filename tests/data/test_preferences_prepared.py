"""Preference data and prompts on their way to disk: fates, held-out prompts, the gate, the key, streams, batches."""

import json
import math

import pytest
from groups_for_tests import TEMPLATE, Made, fitter, words
from preparation_for_tests import balanced

from tunekit.core.errors import DataError, UserError
from tunekit.core.types import IGNORED, Example, Question
from tunekit.data.collate import Collator
from tunekit.data.detect import detect
from tunekit.data.examples import ExampleReader
from tunekit.data.gate import NO_END, Gate
from tunekit.data.prepare import data_key
from tunekit.data.store import join
from tunekit.data.stream import Stream
from tunekit.recipe.schema import SourceBlock


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def pair(prompt, chosen="yes", rejected="no", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


PAIRS = [
    pair("hi", margin=2),  # 1 kept
    pair("hi", chosen="yes", rejected=""),  # 2 dropped: empty
    pair("why", rejected="yes"),  # 3 dropped: the same
    pair("hi", margin=2),  # 4 the same as 1
    pair("hi " * 20),  # 5 dropped: the prompt is too long
    pair("why", rejected="no " * 20),  # 6 truncated
    pair("why", "well " * 20 + "yes", "well " * 20 + "no"),  # 7 dropped: they differ too late
]


def test_every_pair_has_its_fate(tmp_path):
    made = Made("pairs", PAIRS, tmp_path, data__max_length=16, data__duplicates="drop")
    assert [(entry.fate, entry.reason) for entry in made.ledger] == [
        ("kept", ""),
        ("dropped", "the rejected answer is empty"),
        ("dropped", "chosen and rejected are the same"),
        ("duplicate", "duplicate"),
        ("dropped", "no trained token within data.max_length"),
        ("truncated", "cut at data.max_length"),
        ("dropped", "chosen and rejected differ only past data.max_length"),
    ]
    assert balanced(made.summary) and made.lines() == [1, 6]
    first, cut = made.rows()
    assert (first["branches"], first["score"], first["columns"]) == ([2, 2], 2.0, None)
    assert first["position_ids"] == [0, 1, 2, 3, 4, 5, 4, 5] and first["labels"] == [IGNORED] * 4 + [4, 2, 5, 2]
    assert cut["branches"] == [2, 12] and max(cut["position_ids"]) == 15 and cut["score"] is None
    assert [entry.tokens for entry in made.ledger] == [8, 0, 0, 0, 0, 18, 0]


def test_an_overlong_sequence_ends_the_run_when_the_recipe_says_so(tmp_path):
    for material, rows in (("pairs", PAIRS[5:6]), ("prompts", [{"prompt": "hi " * 20}])):
        with pytest.raises(DataError, match=r"longer than data\.max_length") as caught:
            Made(material, rows, tmp_path, data__max_length=16, data__overlong="error")
        assert caught.value.problems[0].where.endswith("rows.jsonl:1")


def test_texts_have_no_branches(tmp_path):
    made = Made("texts", [{"prompt": "hi", "completion": "yes"}], tmp_path)
    (row,) = made.rows()
    assert (row["branches"], row["score"], row["columns"], row["position_ids"]) == (None,) * 4


def test_a_row_with_several_pairs_is_one_row_of_the_ledger(tmp_path):
    rows = [{"prompt": "hi", "answers": ["yes", "no", "well", "yes"], "scores": [3, 1, 2, 0]}]
    made = Made("pairs", rows, tmp_path)
    (entry,) = made.ledger
    assert (entry.fate, entry.reason) == ("kept", "some of its answers cannot be used")
    assert entry.detail == "1 of 6: chosen and rejected are the same"
    assert [row["score"] for row in made.rows()] == [2.0, 1.0, 1.0, 1.0, 2.0] and made.lines() == [1] * 5


@pytest.mark.parametrize("material", ["pairs", "judged"])
def test_a_prompt_is_never_both_trained_and_held_out(material, tmp_path):
    prompts = [" ".join(["hi"] * (n % 6 + 1)) for n in range(24)]
    answers = [" ".join(["well"] * (n // 6) + ["yes"]) for n in range(24)]
    rows = [pair(prompt, answer) for prompt, answer in zip(prompts, answers)]
    for seed in range(4):
        made = Made(material, rows, tmp_path, data__eval={"count": 8}, train__seed=seed)
        sides = {split: {row["prompt"] for row in made.rows(split)} for split in ("train", "eval")}
        assert not sides["train"] & sides["eval"] and sides["train"] | sides["eval"] == set(prompts)
        assert made.summary["eval"]["rows"] == 8  # two prompts of four rows each
    with pytest.raises(DataError, match="no other row would be left"):
        Made(material, rows[::6], tmp_path, data__eval={"count": 1})


def test_held_out_sources_with_the_same_pair_are_refused(tmp_path):
    (tmp_path / "eval.jsonl").write_text(json.dumps(pair("hi")) + "\n", encoding="utf-8")
    sets = {"data__eval": [{"path": str(tmp_path / "eval.jsonl")}]}
    with pytest.raises(DataError, match="held-out text is also trained on"):
        Made("pairs", [pair("hi"), pair("why")], tmp_path, **sets)
    Made("pairs", [pair("hi", "well"), pair("why")], tmp_path, **sets)  # another answer to the same prompt is no fault


def test_prompts_keep_their_columns(tmp_path):
    rows = [{"question": "hi", "answer": 5, "level": "easy"}, {"question": "why " * 30, "answer": 1}]
    made = Made("prompts", rows, tmp_path, data__max_length=16)
    (row,) = made.rows()
    assert (row["branches"], row["reference"], row["prompt"]) == ([], "5", "hi") and row["input_ids"] == [0, 3, 2, 1]
    assert json.loads(row["columns"])["columns"] == {"question": "hi", "answer": 5, "level": "easy"}
    assert row["position_ids"] == [0, 1, 2, 3]
    assert made.ledger[1].reason == "the prompt is longer than data.max_length"


CONVERSATION = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


@pytest.mark.parametrize(
    ("row", "reference"),
    [
        ({"messages": CONVERSATION}, "yes"),
        ({"instruction": "hi", "output": "yes"}, "yes"),
        ({"prompt": "hi", "completion": "yes"}, "yes"),
        ({"question": "hi", "answer": "yes"}, "yes"),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]}, "yes"),
        ({"messages": CONVERSATION, "label": True}, "yes"),
        ({"messages": CONVERSATION, "label": False}, ""),
        (pair("hi"), "yes"),
        ({"prompt": "hi"}, ""),
    ],
)
def test_whatever_has_an_answer_has_a_prompt(row, reference, tmp_path):
    (made,) = Made("prompts", [row], tmp_path).rows()
    assert (made["prompt"], made["reference"], made["input_ids"]) == ("hi", reference, [0, 3, 2, 1])


# --- formats are asked by the material that is wanted


@pytest.mark.parametrize(
    ("row", "material", "advice"),
    [
        (pair("hi"), "texts", "these are preference pairs: for "),
        ({"messages": CONVERSATION, "label": True}, "texts", "each answer is judged good or bad: for "),
        ({"messages": CONVERSATION}, "pairs", "none better or worse than another: for "),
        ({"messages": CONVERSATION, "label": True}, "pairs", "each answer is judged good or bad: for "),
        ({"prompt": "hi"}, "judged", "these are prompts without an answer to learn from: for "),
        ({"a": "b"}, "pairs", "`format: pairs` with `columns: {chosen: NAME, rejected: NAME}`"),
    ],
)
def test_rows_of_another_material_are_told_where_they_serve(row, material, advice):
    with pytest.raises(DataError) as caught:
        detect([row], None, material)
    assert advice in caught.value.fix


def test_texts_are_for_methods_that_learn_from_texts():
    with pytest.raises(DataError) as caught:
        detect([{"messages": CONVERSATION}], None, "pairs")
    assert "`tunekit sft`" in caught.value.fix and "`tunekit pretrain`" in caught.value.fix


def test_a_named_format_that_does_not_serve_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    source = SourceBlock(path="rows.jsonl", format="pairs")
    with pytest.raises(UserError, match="`format: pairs`: these are preference pairs, and this method does not learn"):
        list(ExampleReader(tmp_path).examples([source]))
    with pytest.raises(UserError) as caught:
        list(ExampleReader(tmp_path, "pairs").learnt([SourceBlock(path="rows.jsonl", format="chat")]))
    assert "another format: sharegpt_pairs, dialogue_pairs, ranked, pairs" in caught.value.fix


# --- the gate


def final(**changes):
    """A pair that has no fault."""
    return {
        "input_ids": [1, 7, 3, 2, 4, 2], "labels": [-100, -100, 3, 2, 4, 2], "turn_ends": [3, 5], "starts": [0],
        "branches": [2, 2],
    } | changes  # fmt: skip


FAULTS = {
    "no token of an answer is trained": {"labels": [-100, -100, 3, 2, -100, -100], "turn_ends": [3]},
    "no token stands before the answers": {"branches": [3, 3]},
    "a token before the answers is trained": {"labels": [-100, 7, 3, 2, 4, 2]},
    "1 answers where 2 are wanted": {"branches": [4]},
    "no end-of-turn token follows the trained text": {"turn_ends": [3, NO_END]},
    "the end-of-turn token of a trained turn is not trained": {"labels": [-100, -100, 3, 2, 4, -100]},
    "the text begins with two beginning-of-sequence tokens": {"input_ids": [1, 1, 3, 2, 4, 2]},
    "token 9 lies outside the model's embedding of 9 rows": {"input_ids": [1, 7, 3, 2, 9, 2]},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_pair_stops_at_the_gate(fault):
    gate = Gate(vocabulary=9, bos_id=1, material="pairs")
    gate.look(final(), lambda: "good:1")
    gate.close()
    gate.look(final(**FAULTS[fault]), lambda: "bad:1")
    with pytest.raises(DataError) as caught:
        gate.close()
    assert [(p.what, p.where) for p in caught.value.problems] == [(f"{fault} (1 rows)", "bad:1")]


def test_prompts_need_no_label_and_judged_answers_one_branch():
    prompt = final(labels=[-100] * 6, turn_ends=[], branches=[])
    gate = Gate(vocabulary=9, bos_id=1, material="prompts")
    gate.look(prompt, lambda: "good:1")
    gate.close()
    gate = Gate(vocabulary=9, bos_id=1, material="judged")
    gate.look(final(branches=[4]), lambda: "good:1")
    gate.close()
    gate.look(final(), lambda: "bad:1")
    with pytest.raises(DataError, match="2 answers where 1 are wanted"):
        gate.close()


def test_a_template_without_ends_is_refused(tmp_path):
    endless = TEMPLATE.replace(" <e> ", "\n")
    with pytest.raises(DataError, match="no end-of-turn token follows the trained text"):
        Made("pairs", [pair("hi")], tmp_path, words(endless))


# --- key, stream, batches


def test_the_key_holds_the_material_and_is_for_texts_as_it_was(tmp_path):
    made = {name: Made(name, [row], tmp_path) for name, row in (("texts", {"text": "hi"}), ("pairs", pair("hi")))}
    keys = {name: data_key(one.recipe, one.reader, one.fitter).parts for name, one in made.items()}
    assert keys["texts"]["mask"] == "assistant" and keys["pairs"]["mask"] == "pairs"
    assert set(keys["texts"]) == {"rows", "tokenizer", "template", "mask", "lengths", "split", "policy", "code"}
    judged = data_key(made["pairs"].recipe, made["pairs"].reader, fitter("judged")).parts
    assert judged["mask"] == "judged"


def test_pairs_are_streamed_as_they_are_prepared(tmp_path):
    made = Made("pairs", PAIRS, tmp_path, data__max_length=16)
    streamed = Stream(made.recipe, made.reader, made.fitter)
    wanted, got = made.rows(), []
    for row in streamed.examples():
        got.append(row)
        if len(got) == len(wanted):
            break
    assert got == wanted
    assert [entry.fate for entry in streamed.ledger] == [entry.fate for entry in made.ledger]


def test_a_batch_of_groups_has_its_branches_and_scores(tmp_path):
    rows = Made("pairs", [pair("hi", margin=2), pair("hi why", "yes yes")], tmp_path).rows()
    batch = Collator(0)(rows)
    assert batch["branches"].tolist() == [[2, 2], [3, 2]]
    assert batch["score"][0] == 2.0 and math.isnan(batch["score"][1]) and str(batch["score"].dtype) == "torch.float32"
    assert batch["position_ids"][0, :8].tolist() == [0, 1, 2, 3, 4, 5, 4, 5]
    filler = {"input_ids": [0], "labels": [IGNORED], "empty": True}
    assert Collator(0)([rows[0], filler])["branches"].tolist() == [[2, 2], [0, 0]]
    (found,) = fitter("prompts").encode([Question(Example(text="hi"), "", {})])
    prompt = join([{"number": 0, **found.examples[0]}], True)
    assert Collator(0)([prompt])["branches"].tolist() == [[0]]
    assert not {"branches", "score"} & set(Collator(0)([filler]))
