"""Pairs, judged answers and prompts as rows of tokens: every number by hand, on a tokenizer of ten words."""

import json

import pytest
from groups_for_tests import TWISTED, fitter, talk, words

from tunekit.core.types import Example, Judged, Message, Pair, Question
from tunekit.data.fit import turn_end
from tunekit.data.preview import marked, parts
from tunekit.data.store import join

X = -100
YES, NO = talk("hi", "yes well"), talk("hi", "no")


def one(found):
    """The only row of an encoding that is whole."""
    assert not isinstance(found, str) and not found.lost and len(found.examples) == 1, found
    return found.examples[0]


def test_a_pair_is_its_beginning_and_two_branches():
    row = one(fitter("pairs").encode([(Pair(YES, NO, 1.5),)])[0])
    assert row == {
        "length": 9,
        #             <u> hi <e> <a>  yes well <e>  no <e>
        "input_ids": [0, 3, 2, 1, 4, 6, 2, 5, 2],
        "labels": [X, X, X, X, 4, 6, 2, 5, 2],
        "turn_ends": [6, 8],
        "truncated": False,
        "prompt_tokens": 4,
        "prompt": "hi",
        "reference": "yes well",
        "branches": [3, 2],
        "score": 1.5,
        "columns": None,
    }
    final = join([{"number": 7, **row}], isolated=True)
    assert final["position_ids"] == [0, 1, 2, 3, 4, 5, 6, 4, 5]
    assert final["starts"] == [0] and final["rows"] == [7] and final["branches"] == [3, 2] and final["score"] == 1.5


def test_a_row_counts_the_tokens_of_its_beginning_once():
    found = fitter("pairs").encode([(Pair(YES, NO),)])[0]
    assert (found.tokens, found.stay, found.labelled) == (9, 9, 5)
    assert one(found)["score"] is None
    assert found.drawn_by == "hi" and "yes" in found.text and "no" in found.text


def test_a_judged_answer_is_one_branch():
    good, bad = (one(row) for row in fitter("judged").encode([Judged(YES, True), Judged(NO, False)]))
    assert good["input_ids"] == [0, 3, 2, 1, 4, 6, 2] and good["labels"] == [X, X, X, X, 4, 6, 2]
    assert (good["branches"], good["score"], good["turn_ends"], good["reference"]) == ([3], 1.0, [6], "yes well")
    assert (bad["branches"], bad["score"], bad["turn_ends"], bad["reference"]) == ([2], 0.0, [5], "no")
    assert join([{"number": 0, **bad}], True)["position_ids"] == [0, 1, 2, 3, 4, 5]


def test_a_pair_serves_as_a_good_and_a_bad_answer():
    found = fitter("judged").encode([(Pair(YES, NO),)])[0]
    assert [(row["reference"], row["score"], row["branches"]) for row in found.examples] == [
        ("yes well", 1.0, [3]), ("no", 0.0, [2]),
    ]  # fmt: skip


def test_of_several_pairs_only_what_always_wins_or_always_loses_is_judged():
    best, middle, worst = talk("hi", "yes"), talk("hi", "well"), talk("hi", "no")
    pairs = (Pair(best, middle), Pair(best, worst), Pair(middle, worst))
    found = fitter("judged").encode([pairs])[0]
    assert [(row["reference"], row["score"]) for row in found.examples] == [("yes", 1.0), ("no", 0.0)]
    several = fitter("pairs").encode([pairs])[0]
    assert [row["branches"] for row in several.examples] == [[2, 2]] * 3 and several.tokens == 3 * 8


def test_a_prompt_ends_where_the_answer_begins():
    columns = {"level": 3, "who": "问", "broken": "\ud800"}
    found = fitter("prompts").encode([Question(talk("hi", "no", "why"), "yes", columns)])[0]
    row = one(found)
    #                           <u> hi <e> <a> no <e> <u> why <e> <a>
    assert row["input_ids"] == [0, 3, 2, 1, 5, 2, 0, 7, 2, 1] and row["labels"] == [X] * 10
    assert (row["branches"], row["score"], row["turn_ends"], row["prompt_tokens"]) == ([], None, [], 10)
    assert (row["prompt"], row["reference"]) == ("user: hi\nassistant: no\nuser: why", "yes")
    assert json.loads(row["columns"])["columns"] == columns and row["columns"].isascii()
    assert join([{"number": 0, **row}], True)["position_ids"] == list(range(10))


def test_plain_text_is_a_prompt_without_an_end():
    row = one(fitter("prompts").encode([Question(Example(text="hi why"), "", {})])[0])
    assert row["input_ids"] == [3, 7] and row["prompt"] == "hi why"


def test_what_a_template_writes_in_another_way_belongs_to_the_branches_without_labels():
    found = fitter("pairs", tokenizer=words(TWISTED)).encode([(Pair(talk("hi", "yes"), talk("hi", "no")),)])[0]
    row = one(found)
    #                           <u> hi    <e> <a> yes <e>    well <e> <a> no <e>
    assert row["input_ids"] == [0, 3, 2, 1, 4, 2, 6, 2, 1, 5, 2]
    assert row["labels"] == [X, X, X, X, 4, 2, X, X, X, 5, 2]
    assert row["branches"] == [4, 5] and row["prompt_tokens"] == 2 and row["turn_ends"] == [5, 10]


def test_words_that_the_answers_begin_with_alike_are_trained_in_both():
    row = one(fitter("pairs").encode([(Pair(talk("hi", "well yes"), talk("hi", "well no")),)])[0])
    assert row["branches"] == [3, 3] and row["labels"] == [X, X, X, X, 6, 4, 2, 6, 5, 2]


@pytest.mark.parametrize("loss_on", ["assistant", "last_turn", "all"])
def test_only_the_last_answer_is_trained_whatever_the_recipe_and_the_turns_say(loss_on):
    before = (Message("user", "hi", train=None), Message("assistant", "well", train=True), Message("user", "why"))
    chosen, rejected = (Example((*before, Message("assistant", text, train=False))) for text in ("yes", "no"))
    row = one(fitter("pairs", loss_on=loss_on).encode([(Pair(chosen, rejected),)])[0])
    assert row["labels"] == [X] * 10 + [4, 2, 5, 2] and row["branches"] == [2, 2]


LONG = talk("hi", "yes " * 10 + "well")  # 4 + 12 tokens


@pytest.mark.parametrize(
    ("pair", "limit", "overlong", "lost"),
    [
        (Pair(YES, YES), 64, "truncate", "chosen and rejected are the same"),
        (Pair(YES, talk("hi", " yes  well ")), 64, "truncate", "chosen and rejected are the same"),
        (Pair(talk("hi", "yes", "why", "no"), talk("hi", "no", "why", "yes")), 64, "truncate",
         "the two dialogues differ before the last answer"),
        (Pair(talk("hi", "yes", "why", "no"), talk("hi", "no")), 64, "truncate",
         "the two dialogues differ before the last answer"),
        (Pair(LONG, NO), 12, "drop", "longer than data.max_length"),
        (Pair(LONG, NO), 12, "error", "longer than data.max_length"),
        (Pair(YES, NO), 4, "truncate", "no trained token within data.max_length"),
        (Pair(LONG, talk("hi", "yes " * 10 + "no")), 14, "truncate",
         "chosen and rejected differ only past data.max_length"),
    ],
)  # fmt: skip
def test_each_fault_of_a_pair_has_its_reason(pair, limit, overlong, lost):
    found = fitter("pairs", limit, overlong).encode([(pair,)])[0]
    assert (found if isinstance(found, str) else found.lost) == lost
    if not isinstance(found, str):
        assert not found.examples and found.overlong == ("max_length" in lost)
        assert found.detail == "turn 2" or "dialogues" not in lost


def test_faults_of_other_material():
    assert fitter("judged").encode([Judged(Example(text="hi"), True)]) == [
        "plain text has no answer that could be better or worse"
    ]
    found = fitter("prompts", 3).encode([Question(talk("hi"), "", {})])[0]
    assert found.lost == "the prompt is longer than data.max_length" and found.overlong and not found.examples
    assert found.detail == "4 tokens, 3 are allowed"
    assert fitter("prompts").encode([Question(Example(text=""), "", {})])[0].lost == "the prompt has no token"


def test_a_pair_is_cut_where_its_sequences_are_too_long():
    found = fitter("pairs", 7).encode([(Pair(LONG, NO),)])[0]
    row = one(found)
    assert row["input_ids"] == [0, 3, 2, 1, 4, 4, 4, 5, 2] and row["branches"] == [3, 2] and row["truncated"]
    assert row["turn_ends"] == [8]  # the end of the cut answer is gone, and its absence is no fault
    assert (found.tokens, found.stay, found.why_less) == (18, 9, "cut at data.max_length")


def test_a_row_with_a_pair_that_cannot_be_used_keeps_the_others():
    found = fitter("pairs").encode([(Pair(YES, YES), Pair(YES, NO))])[0]
    assert len(found.examples) == 1 and found.partly == "1 of 2: chosen and rejected are the same"
    assert found.why_less == "some of its answers cannot be used"


def test_the_token_that_ends_a_turn_is_known_for_every_material():
    assert [turn_end(fitter(name)) for name in ("texts", "pairs", "judged", "prompts")] == [2] * 4


def test_the_parts_of_a_preview():
    made = fitter("pairs")
    row = one(made.encode([(Pair(YES, NO),)])[0])
    shown = parts(row, "pairs")
    assert [(part.title, part.size) for part in shown] == [
        ("prompt", "4 tokens"), ("chosen", "3 tokens, 3 trained"), ("rejected", "2 tokens, 2 trained"),
    ]  # fmt: skip
    tokenizer = made.renderer.tokenizer
    texts = [marked(part.encoded, tokenizer, part.begin).split() for part in shown]
    assert texts == [["<u>", "hi", "<e>", "<a>"], ["«", "yes", "well", "<e>»"], ["«", "no", "<e>»"]]
    (judged,) = fitter("judged").encode([Judged(NO, False)])
    assert [part.title for part in parts(one(judged), "judged")] == ["prompt", "bad"]
    (prompt,) = fitter("prompts").encode([Question(talk("hi"), "", {})])
    assert [part.title for part in parts(one(prompt), "prompts")] == ["prompt"]
