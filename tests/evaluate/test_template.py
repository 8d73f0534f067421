import json

import pytest
from pydantic import BaseModel, ValidationError
from scripted_engine_for_tests import rows

from tunekit.core.errors import DataError, UserError
from tunekit.evaluate.contract import Row
from tunekit.evaluate.fewshot import FewShot, LocalFile, read, seen, shots, text_file
from tunekit.evaluate.template import Column, Template, blank, column, fill, value

ANSWERS = {"text": ["four", "4"]}
ROW = Row({"question": "2+2?", "n": 4, "answers": ANSWERS, "a.b": "dotted", "ok": True, "no": None}, "f:1")


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("Q: {question}\nA:", "Q: 2+2?\nA:"),
        ("{n}{n}", "44"),
        ("{answers.text.1}", "4"),
        ("{a.b} {ok}", "dotted true"),
        ("{{{n}}} {{}} {{question}}", "{4} {} {question}"),
        ("plain", "plain"),
    ],
)
def test_columns_are_put_in(text, filled):
    assert fill(text, ROW) == filled


def test_a_value_with_braces_is_not_filled_again():
    assert fill("{question}", Row({"question": "{n} {{"}, "f:1")) == "{n} {{"


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("questoin", "did you mean 'question'?"),
        ("answers.txt", "did you mean 'answers.text'?"),
        ("answers.text.2", "'answers.text' is a list of 2: its items are answers.text.0, answers.text.1, ..."),
        ("n.x", "'n' has nothing inside it"),
    ],
)
def test_a_column_that_is_not_there_is_refused_with_the_nearest(name, fix):
    with pytest.raises(DataError, match=f"f:1: no column '{name}'") as error:
        fill(f"x {{{name}}}", ROW)
    assert error.value.fix == fix
    with pytest.raises(DataError):
        column(ROW, name)


@pytest.mark.parametrize(("name", "what"), [("answers", "an object"), ("answers.text", "a list"), ("no", "null")])
def test_what_is_no_text_is_refused(name, what):
    with pytest.raises(DataError, match=what):
        fill(f"{{{name}}}", ROW)
    assert column(ROW, name) == {"answers": ROW.values["answers"], "answers.text": ["four", "4"], "no": None}[name]


@pytest.mark.parametrize("text", ["{question", "question}", "{}", "{{n}", "{a{b}"])
def test_a_brace_without_partner_is_refused(text):
    class Config(BaseModel):
        text: Template

    with pytest.raises(UserError, match="partner"):
        fill(text, ROW)
    with pytest.raises(ValidationError, match="partner"):
        Config(text=text)


def test_a_column_field_takes_no_template():
    class Config(BaseModel):
        name: Column

    assert Config(name="a.b").name == "a.b"
    with pytest.raises(ValidationError, match="name of a column"):
        Config(name="{a}")


def test_value_and_blank():
    assert value("answers.text", ROW) == ["four", "4"]
    assert value("{n}!", ROW) == "4!"
    assert blank("Q: {question} {{x}} {n}", "N/A") == "Q: N/A {x} N/A"


LINES = '{"q": "1+1", "a": "2"}\n\n{"q": "2+2", "a": "4"}\n{"q": "3+3", "a": "6"}\n'


def test_shots_stand_before_in_the_order_of_the_file(tmp_path):
    path = tmp_path / "shots.jsonl"
    path.write_text(LINES)
    assert shots(FewShot(path=str(path), count=2), "Q: {q}\nA:", "{a}", " ") == "Q: 1+1\nA: 2\n\nQ: 2+2\nA: 4\n\n"
    assert [row.where for row in read(FewShot(path=str(path)))] == [f"{path}:{n}" for n in (1, 3, 4)]
    drawn = [read(FewShot(path=str(path), count=2, seed=seed)) for seed in range(20)]
    assert drawn[3] == read(FewShot(path=str(path), count=2, seed=3))
    assert len({tuple(row.values["q"] for row in rows) for rows in drawn}) > 2
    assert shots(None, "Q", "A", " ") == ""


@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        ("s.json", json.dumps([{"q": "a", "a": "b,\nc"}, {"q": "None", "a": "x"}]), {}),
        ("s.json", json.dumps({"canary": "-", "examples": [{"q": "a", "a": "b,\nc"}, {"q": "None", "a": "x"}]}),
         {"rows": "examples"}),
        ("s.json", '{"q": "a", "a": "b,\\nc"}\n{"q": "None", "a": "x"}\n', {}),
        ("s.csv", 'q,a\na,"b,\nc"\n\nNone,x\n', {}),
        ("s.csv", 'a,"b,\nc"\nNone,x', {"header": "q, a"}),
    ],
)  # fmt: skip
def test_files_are_read(tmp_path, name, text, options):
    (tmp_path / name).write_text(text)
    found = read(FewShot(path=str(tmp_path / name), **options))
    assert [dict(row.values) for row in found] == [{"q": "a", "a": "b,\nc"}, {"q": "None", "a": "x"}]


def test_tsv_has_no_quotes(tmp_path):
    (tmp_path / "s.tsv").write_text('﻿q\ta\nsay "hi\tyes\n', encoding="utf-8")
    assert dict(read(FewShot(path=str(tmp_path / "s.tsv")))[0].values) == {"q": 'say "hi', "a": "yes"}


@pytest.mark.parametrize(
    ("name", "text", "options", "kind", "match"),
    [
        ("s.jsonl", '{"q": 1}\n{"q":', {}, DataError, r"s\.jsonl:2: not JSON"),
        ("s.jsonl", "[1]\n", {}, DataError, r"s\.jsonl:1: an object"),
        ("s.json", '{"examples": []}', {}, DataError, "a list of examples"),
        ("s.json", '{"examples": []}', {"rows": "exmples"}, UserError, "no key 'exmples'"),
        ("s.json", "[]", {}, DataError, "no examples"),
        ("s.csv", "q,a\n1,2,3\n", {}, DataError, r"s\.csv:2: 3 fields"),
        ("s.csv", 'q,a\n"1,2\n', {}, DataError, r"s\.csv:2: not csv"),
        ("s.parquet", "PAR1", {}, UserError, "none of jsonl"),
        ("s.jsonl", '{"q": 1}\n', {"count": 2}, UserError, "few_shot.count is 2"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, name, text, options, kind, match):
    (tmp_path / name).write_text(text)
    with pytest.raises(kind, match=match):
        read(FewShot(path=str(tmp_path / name), **options))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "s.txt").write_bytes(b"ab\xff")
    with pytest.raises(DataError, match="byte 2"):
        text_file(str(tmp_path / "s.txt"))


def test_a_missing_file_names_the_places(tmp_path, monkeypatch):
    class Config(BaseModel):
        path: LocalFile

    monkeypatch.chdir(tmp_path)
    (tmp_path / "shots.jsonl").write_text(LINES)
    with pytest.raises(UserError, match=f"looked for {tmp_path / 'shot.jsonl'}") as error:
        read(FewShot(path="shot.jsonl"))
    assert error.value.fix == "did you mean 'shots.jsonl'?"
    folder = tmp_path / "recipes"
    with pytest.raises(ValidationError, match=f"{folder / 'none.txt'} and {tmp_path / 'none.txt'}"):
        Config.model_validate({"path": "none.txt"}, context={"folder": folder})
    folder.mkdir()
    wish = {"path": "shots.jsonl"}
    assert Config.model_validate(wish, context={"folder": folder}).path == str(tmp_path / "shots.jsonl")
    (folder / "shots.jsonl").write_text(LINES)
    assert Config.model_validate(wish, context={"folder": folder}).path == str(folder / "shots.jsonl")


def test_a_row_among_the_examples_is_seen():
    found = seen([("Q: a", "s:1"), ("Q: b", "s:2")], [("Q: c", "e:1"), ("Q: b ", "e:2")])
    assert [(problem.where, "s:2" in problem.fix) for problem in found] == [("e:2", True)]
    assert rows({"a": 1})[0].where == "rows.jsonl:1"
