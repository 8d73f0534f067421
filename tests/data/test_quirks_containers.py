"""The oddities of real data (shared/data/QUIRKS.md) in containers and types are read rightly or refused by name.

The expected values were taken from the files by hand or with the standard library, never from the code under test.
"""

import json
from collections import Counter

import pytest
from sources_for_tests import convert, good, read

from tunekit.core.errors import DataError
from tunekit.data.detect import detect


@pytest.mark.parametrize(
    ("path", "count"),
    [
        ("sft/huatuo_med_zh.first6000.json", 6000),
        ("math/aqua_dev.json", 254),
        ("chat/bfcl_v4_multiple.json", 200),
        ("chat/bfcl_v4_multiple_answers.json", 200),
    ],
)
def test_json_lines_named_json(path, count, shared_data):
    rows = good(shared_data, path)
    lines = [line for line in (shared_data / path).read_text("utf-8").split("\n") if line.strip()]
    assert list(rows.values()) == [json.loads(line) for line in lines]
    assert len(rows) == count and list(rows)[-1] == count


def test_crosswoz_is_an_object_and_has_its_own_roles(shared_data):
    path = "chat/crosswoz_val_zh.first60.json"
    with pytest.raises(DataError) as caught:
        read(shared_data, path)
    assert 'rows: "*"' in caught.value.fix
    name, examples, refused = convert(good(shared_data, path, columns={"rows": "*"}))
    assert name == "turns" and len(examples) == 60 and not refused
    first = examples[1].messages
    assert len(first) == 24 and [turn.role for turn in first[:3]] == ["user", "assistant", "user"]
    assert first[-1].content == "不客气。"


@pytest.mark.parametrize("path", ["qa/cmrc2018_trial_squad.json", "qa/xquad_zh.first36articles.json"])
def test_squad_is_an_object(path, shared_data):
    with pytest.raises(DataError) as caught:
        read(shared_data, path)
    assert "`columns: {rows: data}`" in caught.value.fix


def test_bbh_rows_lie_under_examples(shared_data):
    path = "benchmarks/bbh/boolean_expressions.json"
    with pytest.raises(DataError) as caught:
        read(shared_data, path)
    assert "`columns: {rows: examples}`" in caught.value.fix
    rows = good(shared_data, path, columns={"rows": "examples"})
    assert len(rows) == 250 and rows[1] == {"input": "not ( True ) and ( True ) is", "target": "False"}


def test_taskmaster_json_inside_strings_is_refused(shared_data):
    rows = good(shared_data, "preference/taskmaster3_reward_01.json")
    with pytest.raises(DataError, match="no format fits the columns conversation_id, context, generation, reward"):
        detect(list(rows.values())[:50])


@pytest.mark.parametrize(("language", "empty"), [("en", 92), ("zh", 77)])
def test_glaive_tools_are_json_inside_a_string(language, empty, shared_data):
    rows = good(shared_data, f"chat/lf_glaive_toolcall_{language}_demo.first240.json")
    name, examples, _ = convert(rows)
    assert name == "sharegpt"
    assert sum(not example.tools for example in examples.values()) == empty
    for line, example in examples.items():
        bare = json.loads(rows[line]["tools"])
        assert [tool["function"] for tool in example.tools] == bare


def test_glaive_calls_become_tool_calls(shared_data):
    example = convert(good(shared_data, "chat/lf_glaive_toolcall_en_demo.first240.json", limit=1))[1][1]
    assert [turn.role for turn in example.messages][:5] == ["user", "assistant", "user", "assistant", "tool"]
    call = {"name": "search_recipes", "arguments": {"ingredients": ["chicken", "bell peppers", "rice"]}}
    assert example.messages[3].tool_calls == ({"type": "function", "function": call},)


def test_glaive_observation_without_a_call(shared_data):
    _, examples, refused = convert(good(shared_data, "chat/lf_glaive_toolcall_zh_demo.first240.json"))
    assert refused == {198: "turn 3: a tool result without a tool call before it"}
    turns = [turn for example in examples.values() for turn in example.messages]
    assert sum(bool(turn.tool_calls) for turn in turns) == 180
    assert sum(turn.role == "tool" for turn in turns) == 180  # 181 in the file, one of them in row 198


def test_reason_tool_use_typed_parts(shared_data):
    path = "chat/lf_reason_tool_use_demo_50.jsonl"
    name, examples, refused = convert(good(shared_data, path))
    assert name == "chat" and len(examples) == 50 and not refused
    turns = [turn for example in examples.values() for turn in example.messages]
    assert sum(turn.reasoning is not None for turn in turns) == 112
    assert sum(len(turn.tool_calls) for turn in turns) == 68
    assert Counter(turn.role for turn in turns) == {"system": 50, "user": 70, "assistant": 112, "tool": 42}
    assert turns[5].tool_calls[0]["function"] == {"name": "get_movie_details", "arguments": {"title": "Inception"}}
    assert examples[1].tools[0]["function"]["parameters"]["type"] == "dict"


def test_bfcl_question_lists_are_refused(shared_data):
    rows = good(shared_data, "chat/bfcl_v4_multiple.json")
    assert rows[1]["function"][0]["parameters"]["type"] == "dict"
    with pytest.raises(DataError, match="no format fits the columns id, question, function"):
        detect(list(rows.values())[:50])


def test_mmlu_none_stays_text(shared_data):
    rows = list(good(shared_data, "benchmarks/mmlu/test/college_mathematics_test.csv").values())
    for record in (10, 23, 62):
        assert "None" in rows[record - 2].values()
    assert all(isinstance(text, str) for row in rows for text in row.values())
    logic = list(good(shared_data, "benchmarks/mmlu/dev/formal_logic_dev.csv").values())
    assert len(logic) == 5
    assert all("\n" in str_of_values(logic[record - 2]) for record in (4, 5, 6))
    with pytest.raises(DataError, match="choice0"):
        detect(logic)


def str_of_values(row):
    return "".join(row.values())


def test_cmath_golden_is_a_string(shared_data):
    rows = good(shared_data, "math/cmath_dev.jsonl")
    assert [rows[row]["golden"] for row in (211, 219, 227, 261, 302)] == ["2/6", "6/9", "1/8", "48.1", "2813.18"]
    name, examples, refused = convert(rows, None, {"question": "input", "answer": "golden"})
    assert name == "question_answer" and len(examples) == 600 and not refused


def test_scitldr_lists_keep_their_spaces(shared_data):
    rows = good(shared_data, "summarization/scitldr_a_dev.jsonl")
    first = [row["target"][0] for row in rows.values()]
    assert sum(text != text.strip() for text in first) == 52
    with pytest.raises(DataError, match="no format fits the columns source"):
        detect(list(rows.values())[:50])


def test_row_aligned_labels_need_a_container_name(shared_data):
    with pytest.raises(DataError, match="does not tell what it is"):
        read(shared_data, "benchmarks/piqa_valid_labels.first1200.lst")
    assert len(good(shared_data, "benchmarks/piqa_valid_labels.first1200.lst", container="txt")) == 1200


def test_self_instruct_nested_instances(shared_data):
    rows = good(shared_data, "sft/self_instruct_seed_tasks.jsonl")
    with pytest.raises(DataError) as caught:
        detect(list(rows.values())[:50])
    assert "output: instances.0.output" in caught.value.fix
    columns = {"input": "instances.0.input", "output": "instances.0.output"}
    name, examples, refused = convert(rows, None, columns)
    assert name == "alpaca" and len(examples) + len(refused) == 175
    assert examples[1].messages[1].content.startswith("Yes, you can have 1 oatmeal banana protein shake")
    empty = {line for line, row in rows.items() if not row["instances"][0]["output"].strip()}
    assert set(refused) == empty


def test_a_list_of_labels_holds_no_rows(shared_data):
    rows = read(shared_data, "classification/banking77_categories.json")
    assert len(rows) == 77 and {row.reason for row in rows} == {"text where an object is expected"}
