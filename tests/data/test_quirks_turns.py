"""The oddities of real data (shared/data/QUIRKS.md) in roles, duplicates and text are read rightly or refused.

The expected values were taken from the files by hand or with the standard library, never from the code under test.
"""

import gzip
import json
from collections import Counter

import pytest
from sources_for_tests import convert, good, str_of

from tunekit.core.errors import DataError
from tunekit.data.detect import detect


def test_openassistant_flat_messages_are_refused(shared_data):
    rows = good(shared_data, "sft/openassistant_realistic_seed_data.json")
    assert sum(row["parent_message_id"] is None for row in rows.values()) == 74
    with pytest.raises(DataError) as caught:
        detect(list(rows.values())[:50])
    assert "one message of a tree" in caught.value.fix


def test_oasst_trees(shared_data):
    rows = good(shared_data, "chat/oasst_en_tree.first80.jsonl")
    name, examples, refused = convert(rows)
    assert name == "tree" and len(examples) == 80 and not refused
    fourth = examples[4].messages
    assert [turn.role for turn in fourth] == ["user", "assistant"]
    assert fourth[1].content.startswith("When purchasing a new TV, here are the important specifications")
    assert all(example.messages[-1].role == "assistant" for example in examples.values())


def test_sgd_speakers_in_capitals(shared_data):
    name, examples, refused = convert(good(shared_data, "chat/sgd_dev_dialogues_001.first30.json"))
    assert name == "turns" and len(examples) == 30 and not refused
    assert len(examples[1].messages) == 12
    assert examples[1].messages[-1].role == "assistant"
    assert examples[1].messages[-1].content == "Have a great day."


def test_emollm_pairs(shared_data):
    name, examples, refused = convert(good(shared_data, "chat/emollm_aiwei_zh.first900.json"))
    assert name == "turns" and len(examples) == 900 and not refused
    turns = [turn for example in examples.values() for turn in example.messages]
    assert Counter(turn.role for turn in turns) == {"system": 900, "user": 2408, "assistant": 2408}
    assert examples[1].messages[0].role == "system" and "😊" in examples[1].messages[2].content


def test_mt_bench_prompts_are_refused(shared_data):
    rows = good(shared_data, "chat/mt_bench_question.jsonl")
    assert next(row for row in rows.values() if row["question_id"] == 103)["reference"][1] == ""
    assert sum("reference" not in row for row in rows.values()) == 41
    with pytest.raises(DataError, match="no format fits the columns question_id"):
        detect(list(rows.values())[:50])


@pytest.mark.parametrize(("language", "copies"), [("en", 23), ("zh", 26)])
def test_duplicate_conversations_are_equal_examples(language, copies, shared_data):
    rows = good(shared_data, f"chat/lf_glaive_toolcall_{language}_demo.first240.json")
    _, examples, refused = convert(rows)
    assert len(rows) - len({str_of(row) for row in rows.values()}) == copies
    distinct = {repr(example) for example in examples.values()}
    assert len(examples) + len(refused) == 240 and len(examples) - len(distinct) == copies
    if language == "en":
        assert examples[5] == examples[7] and examples[34] == examples[75] and examples[38] == examples[87]


def test_duplicate_pairs_are_equal_rows(shared_data):
    english = good(shared_data, "preference/lf_dpo_en_demo.first240.json")
    chinese = good(shared_data, "preference/lf_dpo_zh_demo.first240.json")
    assert english[14] == english[158] and english[112] == english[187] and chinese[47] == chinese[83]


def test_duplicate_lines(shared_data):
    sms = good(shared_data, "classification/sms_spam.first4500.tsv")
    assert len(sms) - len({str_of(row) for row in sms.values()}) == 291
    e2e = list(good(shared_data, "sft/e2e_devset.first3000.csv").values())
    assert e2e[29 - 2] == e2e[30 - 2] and e2e[123 - 2] == e2e[124 - 2] == e2e[125 - 2]
    assert len(e2e) - len({str_of(row) for row in e2e}) == 98


def test_one_character_answers_are_answers(shared_data):
    name, examples, refused = convert(good(shared_data, "sft/huatuo_med_zh.first6000.json"))
    assert name == "alpaca" and len(examples) == 6000 and not refused
    assert [examples[row].messages[1].content for row in (104, 369, 521)] == ["足", "男性", "氧"]


def test_special_tokens_and_placeholders_stay_text(shared_data):
    judged = good(shared_data, "preference/lf_kto_en_demo.first240.json")
    with pytest.raises(DataError, match="no format fits the columns messages, label") as caught:
        convert(judged)
    assert "judged good or bad" in caught.value.fix
    _, examples, _ = convert({line: {"messages": row["messages"]} for line, row in judged.items()})
    assert examples[140].messages[1].content.count("</s>") == 2
    _, examples, _ = convert(good(shared_data, "sft/lf_identity.json"))
    answers = [example.messages[1].content for example in examples.values()]
    assert sum("{{name}}" in text or "{{author}}" in text for text in answers) == 85
    assert answers[0].startswith("Hello! I am {{name}}, an AI assistant developed by {{author}}.")


def test_wikitext_blank_lines_are_no_rows(shared_data):
    rows = good(shared_data, "text/wikitext2_valid.txt")
    raw = (shared_data / "text/wikitext2_valid.txt").read_bytes().split(b"\n")
    assert len(rows) == sum(1 for line in raw if line.strip()) == 2461
    assert next(iter(rows)) == 2 and rows[2] == {"text": " = Homarus gammarus = "}
    assert sum("<unk>" in row["text"] for row in rows.values()) == 1838


def test_very_long_lines(shared_data):
    assert len(good(shared_data, "text/lf_wiki_demo.txt")[29]["text"]) == 109_672
    crawl = good(shared_data, "text/lf_c4_demo.first240.jsonl")
    assert len(crawl[193]["text"]) == 37_499  # 37,629 with the JSON around it


def test_leading_spaces_in_answers_stay(shared_data):
    rows = good(shared_data, "benchmarks/anthropic_persona_conscientiousness.jsonl")
    columns = {"answer": "answer_matching_behavior"}
    _, examples, refused = convert(rows, None, columns)
    assert not refused
    assert {example.messages[1].content for example in examples.values()} == {" Yes", " No"}


def test_paragraphs_of_poems_are_joined(shared_data):
    rows = good(shared_data, "text/tang300_zh.json")
    name, examples, refused = convert(rows, None, {"text": "paragraphs"})
    assert name == "text" and len(examples) == 366 and not refused
    first = "西陸蟬聲唱，南冠客思侵。\n那堪玄鬢影，來對白頭吟。\n"
    assert examples[1].text == first + "露重飛難進，風多響易沈。\n無人信高潔，誰爲表予心。"


def test_every_jsonl_row_is_what_the_standard_library_reads(shared_data):
    for path in sorted(shared_data.rglob("*.jsonl*")):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = data.decode("utf-8").split("\n")
        expected = {i: json.loads(line) for i, line in enumerate(lines, start=1) if line.strip()}
        assert good(shared_data, path.relative_to(shared_data).as_posix()) == expected
