"""The oddities of real data (shared/data/QUIRKS.md) in bytes, encodings and line ends are read rightly or refused.

The expected values were taken from the files by hand or with the standard library, never from the code under test.
"""

import json

import pytest
from sources_for_tests import convert, good, read, str_of

from tunekit.core.errors import DataError
from tunekit.data.detect import detect


def test_botchan_byte_order_mark_and_crlf(shared_data):
    rows = good(shared_data, "text/botchan.txt")
    assert rows[1] == {"text": "Project Gutenberg's Botchan (Master Darling), by Kin-nosuke Natsume"}
    raw = (shared_data / "text/botchan.txt").read_bytes()
    assert len(rows) == sum(1 for line in raw.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip())
    assert not any("\r" in row["text"] or "\ufeff" in row["text"] for row in rows.values())


def test_e2e_crlf_csv(shared_data):
    rows = good(shared_data, "sft/e2e_devset.first3000.csv")
    assert len(rows) == 3000 and list(rows)[:2] == [2, 3]
    assert rows[2] == {
        "mr": "name[Alimentum], area[city centre], familyFriendly[no]",
        "ref": "There is a place in the city centre, Alimentum, that is not family-friendly.",
    }
    assert not any("\r" in text for row in rows.values() for text in row.values())


def test_banking_newlines_inside_quotes(shared_data):
    rows = good(shared_data, "classification/banking77_train.csv")
    assert len(rows) == 10_003
    values = list(rows.values())
    wanted = {"text": "\nI can't seem to be able to use my card\n\n\n", "category": "card_not_working"}
    assert values[1292 - 2] == wanted
    raw = (shared_data / "classification/banking77_train.csv").read_bytes()
    line = raw[: raw.index(b"\"\nI can't seem to be able to use my card")].count(b"\n") + 1
    assert rows[line] == wanted
    assert all("\n" in values[record - 2]["text"] for record in (1292, 1712, 1724, 3118))
    assert sum("\n" in row["text"] for row in values) == 10


def test_toyhom_gbk_is_refused_by_name_and_read_when_named(shared_data):
    path = "classification/toyhom_internal_medicine_zh_gbk.first2900.csv"
    with pytest.raises(DataError) as caught:
        read(shared_data, path)
    problem = caught.value.problems[0]
    assert problem.where == f"{path}:2"
    assert "byte 28" in problem.what  # the header is 28 ASCII bytes long
    assert "`encoding: gbk`" in problem.fix
    rows = list(good(shared_data, path, encoding="gbk").values())
    assert len(rows) == 2900
    assert rows[0]["title"] == "高血压患者能吃党参吗？"
    for record in (1007, 1008, 1009, 1011, 1012, 1016, 1017):
        assert "\n" in rows[record - 2]["answer"] or "\n" in rows[record - 2]["ask"], record
    assert any(row["ask"] == "无" for row in rows)
    _, examples, refused = convert(dict(enumerate(rows)), "question_answer", {"question": "title"})
    assert len(examples) == 2900 and not refused


def test_sms_bare_quotes_control_characters_and_entities(shared_data):
    rows = good(shared_data, "classification/sms_spam.first4500.tsv")
    assert len(rows) == 4500
    assert rows[20]["SMS"].startswith("Fine if that\x92s the way u feel.")
    assert sum(any("\x80" <= c < "\xa0" for c in row["SMS"]) for row in rows.values()) == 30
    assert rows[100]["SMS"].endswith('Does that cause prob for u?"')
    assert all(rows[line]["SMS"].count('"') % 2 for line in (100, 713, 1285, 1562))
    assert rows[30]["SMS"].startswith("I'm back &amp; we're packing")
    assert rows[9] == rows[105] == rows[156]


def test_dpo_mojibake_and_replacement_characters_stay(shared_data):
    assert "Heart of the Ocean \u00e2\u0080\u0094 in her" in str_of(
        good(shared_data, "preference/lf_dpo_en_demo.first240.json")[16]
    )
    chinese = good(shared_data, "preference/lf_dpo_zh_demo.first240.json")
    assert [str_of(chinese[row]).count("\ufffd") for row in (42, 56, 124)] == [3, 3, 3]
    crawl = good(shared_data, "text/lf_c4_demo.first240.jsonl")
    assert [crawl[row]["text"].count("\ufffd") for row in (11, 94, 109, 165)] == [2, 1, 2, 10]


def test_hh_gzip_private_use_and_role_words_inside(shared_data):
    rows = good(shared_data, "preference/hh_rlhf_harmless_base_test.first1500.jsonl.gz")
    assert len(rows) == 1500
    assert str_of(rows[420]).count("\uf04a") == 3
    assert all("\n\nAssistant: Human:" in rows[row]["chosen"] for row in (30, 106, 147, 198))
    assert rows[87]["chosen"].endswith("\n\nAssistant: ")
    with pytest.raises(DataError) as caught:
        detect(list(rows.values())[:50])
    assert "preference pairs" in caught.value.fix


def test_gsm8k_line_separator_and_odd_spaces(shared_data):
    rows = good(shared_data, "math/gsm8k_train.jsonl")
    assert len(rows) == 7473
    assert "balls.  \u2028The box contains" in rows[2382]["question"]
    assert all("\u00a0" in str_of(rows[row]) for row in (564, 2489, 5745))
    name, examples, refused = convert(rows)
    assert name == "question_answer" and len(examples) == 7473 and not refused
    assert examples[2382].messages[0].content == rows[2382]["question"]


def test_gsm8k_line_separator_written_unescaped(shared_data, tmp_path):
    lines = (shared_data / "math/gsm8k_train.jsonl").read_text("utf-8").split("\n")[2380:2383]
    plain = "\n".join(json.dumps(json.loads(line), ensure_ascii=False) for line in lines)
    assert "\u2028" in plain
    (tmp_path / "a.jsonl").write_text(plain, "utf-8")
    assert list(good(tmp_path, "a.jsonl").values()) == [json.loads(line) for line in lines]


def test_nq_marks_and_spaces_in_answers_stay(shared_data):
    rows = good(shared_data, "qa/nq_open_dev.jsonl")
    assert rows[3256]["answer"][0] == "Algeria\u200e"
    assert sum(any("\u00a0" in answer for answer in row["answer"]) for row in rows.values()) == 111
    with pytest.raises(DataError) as caught:
        detect(list(rows.values())[:50])
    assert "answer: answer.0" in caught.value.fix
    _, examples, refused = convert(rows, "question_answer", {"answer": "answer.0"})
    assert not refused and examples[1].messages[1].content == "14 December 1972 UTC"


def test_tatoeba_has_no_header(shared_data):
    path = "translation/tatoeba_eng_cmn.sample12000.tsv"
    with pytest.raises(DataError) as caught:
        detect([row.value for row in read(shared_data, path, limit=50)])
    assert "columns: {header:" in caught.value.fix
    rows = good(shared_data, path, columns={"header": "en, zh, by"})
    assert len(rows) == 12_000 and rows[1]["zh"] == "你用跑的。"
    assert rows[7643]["zh"] == "從昨天開始變冷了\u200b\u200b。"


@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("text/makemore_names.txt", "zzyzx"),
        ("preference/taskmaster3_reward_01.json", None),
        ("chat/bfcl_v4_multiple.json", None),
    ],
)
def test_no_final_newline(path, last, shared_data):
    raw = (shared_data / path).read_bytes()
    assert not raw.endswith(b"\n")
    rows = good(shared_data, path)
    assert len(rows) == {"text": 32_033, "preference": 500, "chat": 200}[path.partition("/")[0]]
    if last:
        assert list(rows.values())[-1] == {"text": last}
