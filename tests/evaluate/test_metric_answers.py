"""Metrics without a library: worked by hand, on rows of real data."""

from __future__ import annotations

import json
import math

import pytest

from tunekit.core.errors import DataError, UserError
from tunekit.evaluate.metrics._shared.answers import cmrc_pieces, cmrc_text, squad_words
from tunekit.evaluate.scoring import check, score


def one(name, prediction, *references, **options):
    return score(name, options, [prediction], [references]).values[0]


def answers(path):
    data = json.loads(path.read_text(encoding="utf-8"))["data"]
    questions = [question for article in data for part in article["paragraphs"] for question in part["qas"]]
    return {question["id"]: tuple(answer["text"] for answer in question["answers"]) for question in questions}


def test_squad_words():
    assert squad_words("The U.S. is an  Area of a\tland!") == ["us", "is", "area", "of", "land"]
    assert squad_words("Anathema, theatre; A-1") == ["anathema", "theatre", "a1"]
    assert squad_words("“The” Café") == ["“", "”", "café"]  # other punctuation than ASCII's stays
    assert squad_words("") == squad_words("the.") == []


# by hand: words of the answer, words of the reference, shared words
SQUAD = [
    ("56d9992fdc89441400fdb59f", "Luke Kuechly.", "luke  kuechly", 1, 1),
    ("56bec6ac3aeaaa14008c93fe", "the national anthem", "The U.S. national anthem!", 0, 2 * 2 / (3 + 2)),
    ("56e1254ae3433e1400422c66", '"A Machine to End War"', "machine to end wars", 0, 2 * 3 / (4 + 4)),
    ("57338007d058e614000b5bdc", "56.2%", "562", 1, 1),
    ("570d28bdb3d812140066d4a6", "The Greens", "Greens, Greens", 0, 2 * 1 / (2 + 1)),
    ("570d28bdb3d812140066d4a6", "The Greens", "", 0, 0),
]


@pytest.mark.parametrize(("number", "right", "answer", "exact", "f1"), SQUAD)
def test_squad(number, right, answer, exact, f1, shared_data):
    found = answers(shared_data / "qa/xquad_en.first36articles.json")[number]
    assert found == (right,)
    assert one("squad_em", answer, *found) == exact
    assert one("squad_f1", answer, *found) == pytest.approx(f1)
    assert one("squad_f1", answer, "nothing", *found) == pytest.approx(f1)


def test_cmrc_pieces():
    assert cmrc_pieces("约为1：7（男：女）") == ["约", "为", "17", "男", "女"]
    assert cmrc_pieces("KAT-TUN、关西8 Say!") == ["kattun", "关", "西", "8", "say", "!"]
    assert cmrc_text(" 「一领具足」 制度 ") == "一领具足 制度"
    assert cmrc_pieces("") == []


CMRC = [
    ("TRIAL_884_QUERY_0", "达70-80公里", "70-80公里", 0, 2 * 3 / (3 + 4)),
    ("TRIAL_589_QUERY_3", "约为1：7（男：女）", "1:7", 0, 2 * 1 / (1 + 5)),
    ("TRIAL_555_QUERY_1", "「一领具足」制度", "一领具足制度。", 1, 1),
    ("TRIAL_542_QUERY_1", "保罗·塞里诺", "保罗和塞里诺", 0, 2 * 3 / (6 + 5)),  # the longest run: 塞里诺
    ("TRIAL_542_QUERY_1", "保罗·塞里诺", "", 0, 0),
]


@pytest.mark.parametrize(("number", "right", "answer", "exact", "f1"), CMRC)
def test_cmrc(number, right, answer, exact, f1, shared_data):
    found = answers(shared_data / "qa/cmrc2018_trial_squad.json")[number]
    assert right in found
    assert one("cmrc_em", answer, right) == exact
    assert one("cmrc_f1", answer, right) == pytest.approx(f1)
    assert one("cmrc_f1", answer, "甲", right) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"a": [1, 2.5e3, null, true, "好"]}', 1),
        (" 7 ", 1),
        ("1" * 5000, 1),
        ("1e99999999999999999999", 1),
        ('{"a": 1,}', 0),
        ("{'a': 1}", 0),
        ("NaN", 0),
        ("[Infinity]", 0),
        ("", 0),
        ("[" * 100_000, 0),
        ('{"a": 1} done', 0),
        ("```json\n1\n```", 0),
    ],
)
def test_json_valid(text, valid):
    assert one("json_valid", text) == valid


def test_json_equal():
    right = '{"b": [1, {"c": null}], "a": "好"}'
    assert one("json_equal", ' {"a":"\\u597d", "b":[1.0, {"c":null}]}', right) == 1
    assert one("json_equal", '{"a": "好", "b": [{"c": null}, 1]}', right) == 0
    assert one("json_equal", '{"a": "好"}', right) == 0
    assert one("json_equal", "not json", right) == one("json_equal", "", right) == 0
    assert one("json_equal", "true", "1") == one("json_equal", "[0]", "[false]") == 0
    assert one("json_equal", "0.1", "0.10000000000000000001") == 0
    assert one("json_equal", "2", "1", "2e0") == 1
    with pytest.raises(DataError, match="the reference 'yes' is none") as caught:
        check("json_equal", {}, [("1",), ("1", "yes")])
    assert caught.value.problems[0].where == "evaluation row 2"


def test_json_schema(tmp_path):
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]}
    (tmp_path / "s.json").write_text(json.dumps(schema))
    for options in ({"schema": schema}, {"path": str(tmp_path / "s.json")}):
        given = ['{"n": 3}', '{"n": 3.0}', '{"n": 0}', '{"n": 1.5}', "{}", "3", "no", "", '{"n": 1, "好": NaN}']
        assert score("json_schema", options, given, [()] * 9).values == (1, 1, 0, 0, 0, 0, 0, 0, 0)
    with pytest.raises(UserError, match="no JSON Schema: at properties/n/type: 'whole'"):
        check("json_schema", {"schema": {"properties": {"n": {"type": "whole"}}}}, ())
    with pytest.raises(UserError, match="cannot be read"):
        check("json_schema", {"path": str(tmp_path / "none.json")}, ())


def test_a_schema_is_not_fetched(monkeypatch):
    import urllib.request

    def fetched(*_args, **_options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(urllib.request, "urlopen", fetched)
    with pytest.raises(UserError, match="refers to what it does not hold"):
        score("json_schema", {"schema": {"$ref": "https://example.org/a.json"}}, ["1"], [()])


def test_distinct_and_repetition():
    found = score("distinct", {"n": 1}, ["a a b", "猫 猫猫猫", "", "!"], [()] * 4)
    assert found.values[:2] == pytest.approx((2 / 3, 1 / 4))
    assert all(map(math.isnan, found.values[2:]))
    assert found.number() == pytest.approx((2 / 3 + 1 / 4) / 2)
    assert one("distinct", "a b a b", n=2) == pytest.approx(2 / 3)  # ab ba ab
    assert one("repetition", "a b a b", n=2) == pytest.approx(1 / 3)
    assert one("repetition", "one two three four five") == 0
    assert math.isnan(one("repetition", "one two three"))
    assert math.isnan(score("distinct", {}, [""], [()]).number())
