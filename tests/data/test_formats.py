"""Rows of each format become examples, or are refused with the turn or column that is wrong."""

import contextlib
import json
from pathlib import Path

import pytest
from formats_for_tests import GOOD, c
from preferences_for_tests import BETTER

from tunekit.core.errors import DataError, UserError
from tunekit.core.registry import FORMATS
from tunekit.core.types import Example, Judged, Question, RowError
from tunekit.data.detect import detect, to_example

MADE = {"texts": Example, "pairs": tuple, "judged": Judged, "prompts": Question}
BAD_ROWS = Path(__file__).with_name("bad_rows.jsonl")
GOOD = GOOD | BETTER
BAD = {case["name"]: case for case in map(json.loads, BAD_ROWS.read_text("utf-8").splitlines())}


@pytest.mark.parametrize("name", GOOD)
def test_a_row_becomes_an_example(name):
    format_name, row, columns, expected = GOOD[name]
    before = json.dumps(row)
    assert to_example(format_name, row, columns) == expected
    assert detect([row], columns, FORMATS.load(format_name).GIVES) == format_name
    assert json.dumps(row) == before, "the row was changed"


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_refused_with_its_reason(name):
    case = BAD[name]
    with pytest.raises(RowError) as caught:
        to_example(case["format"], case["row"], case["columns"])
    assert case["reason"] in str(caught.value)


def test_every_format_keeps_the_contract():
    assert set(FORMATS.names) == {
        "alpaca", "chat", "dialogue_pairs", "judged", "pairs", "prompt_completion", "prompts", "question_answer",
        "ranked", "scored_turns", "sharegpt", "sharegpt_pairs", "text", "tree", "turns",
    }  # fmt: skip
    modules = [FORMATS.load(name) for name in FORMATS.names]
    assert len({module.PRECEDENCE for module in modules}) == len(modules)
    for module in modules:
        assert FORMATS.help(module.__name__.rpartition(".")[2]).endswith((".", ":"))
        assert set(module.REQUIRED) <= set(module.FIELDS)
        assert all(module.FIELDS.values())
        assert not module.matches({}) and not module.matches({"x": 1})


def test_every_format_is_exercised():
    assert {case[0] for case in GOOD.values()} == {case["format"] for case in BAD.values()} == set(FORMATS.names)


def test_every_format_survives_any_value():
    values = [
        None,
        True,
        5,
        2.5,
        "",
        "x",
        [],
        ["x"],
        [None],
        [5],
        {},
        {"role": "user"},
        [{}],
        [[]],
        [{"role": None}],
        b"x",
    ]
    for name in FORMATS.names:
        module = FORMATS.load(name)
        for columns in module.FIELDS.values():
            for value in values:
                row = dict.fromkeys(module.REQUIRED, "x") | {columns[0]: value}
                assert module.matches(row) in (True, False)
                with contextlib.suppress(RowError):
                    assert isinstance(to_example(name, row, {}), MADE[module.GIVES])


def test_the_first_rows_must_agree():
    with pytest.raises(DataError) as caught:
        detect([{"text": "a"}, {"text": "b"}, {"txt": "c"}])
    assert "2 of the first 3 rows look like 'text', good row 3 does not" in str(caught.value)
    assert "`format: text`" in caught.value.fix


@pytest.mark.parametrize(
    ("row", "fix"),
    [
        (
            {"instructions": "a", "outputs": "b"},
            "`format: alpaca` with `columns: {instruction: instructions, output: outputs}`",
        ),
        ({"q": "a", "a": "b"}, "`columns: {text: q}`"),
        ({"meta": {"text": "a"}}, "`format: text` with `columns: {text: meta.text}`"),
        ({"chosen": "a", "rejected": "b"}, "preference pairs"),
        ({"messages": [{"role": "user", "content": "a"}], "label": True}, "judged good or bad"),
        ({"prompt": "a", "completion": "b", "label": False}, "judged good or bad"),
        ({**c(("human", "a")), "chosen": {}, "rejected": {}}, "preference pairs"),
        ({"text": "a", "role": "prompter", "parent_id": None}, "one message of a tree"),
        ({"Run.": "a", "你用跑的。": "b"}, "columns: {header:"),
        ({}, "format: text"),
    ],
)
def test_unknown_columns_are_told_with_a_line_to_write(row, fix):
    with pytest.raises(DataError) as caught:
        detect([row])
    assert caught.value.exit_code == 3
    assert fix in caught.value.fix
    for name in row:
        assert name in str(caught.value)
    assert "question_answer (question, answer)" in str(caught.value)


def test_columns_take_part_in_the_detection():
    assert detect([{"en": "a", "zh": "b"}], {"question": "en", "answer": "zh"}) == "question_answer"
    assert detect([{"en": "a", "zh": "b"}], {"prompt": "en", "completion": "zh"}) == "prompt_completion"
    assert (
        detect([{"chosen": "b", "rejected": "c", "q": "a"}], {"prompt": "q", "completion": "chosen"})
        == "prompt_completion"
    )
    assert detect([{"a": "x"}], {"text": "a", "header": "a"}) == "text"
    with pytest.raises(UserError) as caught:
        detect([{"a": "x"}], {"anser": "a"})
    assert caught.value.fix == "did you mean 'answer'?"


def test_a_column_for_a_field_that_the_format_has_not_is_an_error():
    with pytest.raises(UserError) as caught:
        to_example("text", {"text": "a"}, {"txt": "text"})
    assert caught.value.fix == "did you mean 'text'?"
    assert to_example("text", {"text": "a"}, {"rows": "*"}) == Example(text="a")


def test_an_unknown_format_names_the_nearest():
    with pytest.raises(UserError) as caught:
        to_example("sharegtp", {}, {})
    assert caught.value.fix == "did you mean 'sharegpt'?"
