"""Rows that a method looks at: which are drawn, how they are rendered, and those that are no use."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest

from tunekit.compress import calibration
from tunekit.compress.source import Source
from tunekit.core.errors import DataError, UserError
from tunekit.core.progress import Silent
from tunekit.data import world
from tunekit.exam import rows as exam_rows
from tunekit.model.names import TINY
from tunekit.recipe.schema import SourceBlock
from tunekit.runs.layout import RunFolder

PLAIN = Source("tiny", TINY, None, {})


class Told(Silent):
    def __init__(self):
        self.warned = []

    def warn(self, text):
        self.warned.append(text)


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def draw(path, *, source=PLAIN, screen=None, **how):
    return calibration.read(source, (SourceBlock(path=str(path)),), Path(), screen or Silent(), **how)


def texts(number):
    """Rows of two to nine words, no two the same."""
    words = random.Random(1)
    return [{"text": " ".join(words.choices(["red", "cat", "runs", "far", "home"], k=2 + n % 8)) + f" {n}"}
            for n in range(number)]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a run leaves: its plan and prepared data; 4 of 24 rows are held out."""
    from tunekit.plan.hardware import probe
    from tunekit.plan.resolve import resolve
    from tunekit.recipe.document import override, parse
    from tunekit.recipe.load import check
    from tunekit.train.inputs import Inputs

    place = tmp_path_factory.mktemp("trained")
    talks = [{"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"so {n}"}]}
             for n in range(24)]  # fmt: skip
    written(place / "rows.jsonl", talks)
    folder = place / "run"
    given = ['data.train=[{"path": "rows.jsonl"}]', "data.eval={count: 4}", "data.cache=false", "data.max_length=64"]
    given += [f"output.dir={json.dumps(str(folder))}"]
    plan = resolve(check(override(parse("method: sft\n", "r.yaml"), given)), place / "r.yaml", probe())
    folder.mkdir()
    plan.save(folder / "plan.json")
    Inputs(plan.recipe, Path(plan.recipe_folder)).prepare(Silent(), folder / "data")
    return RunFolder(folder)


def test_by_default_they_are_the_runs_training_rows_in_its_template(run, tokenizer):
    source = Source("run", TINY, run, {})
    held = exam_rows.held_out(run, Silent())
    found = calibration.read(source, (), Path("elsewhere"), Silent(), held=held)
    rendered = {
        tuple(tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]): number
        for number, row in enumerate(map(json.loads, (run.path.parent / "rows.jsonl").read_text().splitlines()), 1)
    }
    assert found.source == "the run's training data" and len(held) == 4
    assert len(found.ids) == 20 and len(set(found.where)) == 20
    assert {f"rows.jsonl:{rendered[ids]}" for ids in found.ids} == set(found.where)
    assert not {row.where for row in held} & set(found.where)
    assert not {row.input_ids for row in held} & set(found.ids)
    assert "so 3" in found.text and found.facts["tokens"] == sum(map(len, found.ids))


def test_the_same_seed_draws_the_same_rows(tmp_path):
    path = written(tmp_path / "rows.jsonl", texts(60))
    one, again, other = (draw(path, count=20, seed=seed) for seed in (3, 3, 4))
    assert one == again and one.facts["sha256"] == again.facts["sha256"]
    assert len(one.ids) == len(set(one.where)) == 20
    assert set(one.where) != set(other.where) and one.facts["sha256"] != other.facts["sha256"]
    assert set(one.where) != {f"{path}:{n}" for n in range(1, 21)}, "the first ones, and none drawn"


def test_what_the_proof_looks_at_is_left_out_wherever_it_stands(tmp_path):
    rows = texts(12)
    path = written(tmp_path / "rows.jsonl", rows)
    measured = written(tmp_path / "measured.jsonl", rows[4:7])
    tally, fitter = exam_rows.Tally(), exam_rows.fitter_of(PLAIN.tokenizer)
    held = list(exam_rows.examples((SourceBlock(path=str(measured)),), Path(), fitter, tally))
    everything = draw(path)
    assert {row.input_ids for row in held} <= set(everything.ids), "the fault that is guarded against"
    kept = draw(path, held=held)
    assert len(kept.ids) == 9 and not {row.input_ids for row in held} & set(kept.ids)
    where = [dataclasses.replace(held[0], input_ids=(1, 2), where=place) for place in everything.where]
    assert set(draw(path, held=where[:5]).where) == set(everything.where[5:]), "cut to another length, say"
    with pytest.raises(DataError, match="every row to calibrate on is a row to measure on: nothing is left"):
        draw(path, held=where)


def test_rows_are_cut_to_length_and_to_the_models_positions(tmp_path, base_of):
    path = written(tmp_path / "rows.jsonl", [{"text": "a red cat runs far from home " * 60}] * 3)
    whole = draw(path, length=4096).ids[0]
    assert len(whole) > 200
    assert draw(path, length=7).ids == (whole[:7],) * 3
    narrow = Source("narrow", base_of(), None, {})  # 128 positions
    assert [len(row) for row in draw(path, source=narrow).ids] == [128] * 3


def test_no_rows_and_no_run(tmp_path):
    with pytest.raises(UserError, match="is of no run") as raised:
        calibration.read(PLAIN, (), Path(), Silent())
    assert raised.value.fix.endswith("--calib data.jsonl")


def test_data_that_is_empty(tmp_path):
    with pytest.raises(DataError, match="the file is empty"):
        draw(written(tmp_path / "rows.jsonl", []))


def test_rows_of_one_token(tmp_path, tokenizer, monkeypatch):
    """A text ends with EOS, so it has two tokens at least; rows that are answered by nothing may have one."""
    from tunekit.evaluate.contract import EvalItem

    one = [EvalItem((5,), (True,), (), "x", None, f"rows:{n}") for n in range(3)]

    def examples(*_, **__):
        tally = _[3]
        for item in one:
            tally.read += 1
            yield item

    monkeypatch.setattr(exam_rows, "examples", examples)
    with pytest.raises(DataError, match="no row to calibrate on has two tokens"):
        draw(tmp_path / "rows.jsonl")


def test_rows_that_cannot_be_used(tmp_path):
    def file(name, good, bad):
        path = written(tmp_path / name, texts(good))
        path.write_text(path.read_text(encoding="utf-8") + '{"text": half\n' * bad, encoding="utf-8")
        return path

    screen = Told()
    found = draw(file("some.jsonl", 10, 4), screen=screen)
    assert len(found.ids) == 10
    assert len(screen.warned) == 1 and screen.warned[0].startswith("4 rows are not calibrated on; ")
    assert f"{tmp_path / 'some.jsonl'}:11" in screen.warned[0]
    with pytest.raises(DataError) as raised:
        draw(file("most.jsonl", 4, 6))
    problems = raised.value.problems
    assert problems[0].what == "6 of 10 rows to calibrate on cannot be used" and "--calib" in problems[0].fix
    assert [problem.where for problem in problems[1:]] == [f"{tmp_path / 'most.jsonl'}:{n}" for n in range(5, 11)]


SCRIPTS = {
    "LATIN": "The dog of Anna sleeps here.",
    "CYRILLIC": "Собака Анны спит здесь.",
    "GREEK": "Ο σκύλος της Άννας κοιμάται εδώ.",
    "ARABIC": "كلب آنا ينام هنا.",
    "CJK": "安娜的狗在这里睡觉",
    "HANGUL": "안나의 개는 여기서 잔다.",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_of_a_text(name):
    assert calibration.script(SCRIPTS[name]) == name
    assert calibration.script(f"{SCRIPTS[name]} 12 + 3 = {SCRIPTS[name]} x") == name
    assert calibration.script("12 + 3 = 15 !") is None


def test_text_in_other_letters_is_refused(tmp_path):
    path = written(tmp_path / "rows.jsonl", [{"text": SCRIPTS["CYRILLIC"]}] * 4)
    found = draw(path)
    with pytest.raises(DataError, match="in Cyrillic letters, the rows to measure on in Latin ones") as raised:
        calibration.check_language(found, SCRIPTS["LATIN"])
    assert raised.value.problems[0].where == str(path)
    calibration.check_language(found, SCRIPTS["CYRILLIC"] * 3)
    calibration.check_language(found, "1 2 3")  # no letters: nothing can be said


def test_rows_in_another_script_are_refused_by_the_command(tmp_path, here):
    """Through quantize, with a kind that looks at text; nothing is measured or made."""
    from typer.testing import CliRunner

    from tunekit.cli.app import app
    from tunekit.compress import recipe
    from tunekit.core.registry import BACKENDS

    kind = "gptq4"
    assert kind in BACKENDS.load(recipe.kinds()[kind]).CALIBRATED
    for module in BACKENDS.load(recipe.kinds()[kind]).PACKAGES:
        pytest.importorskip(module, reason="what makes gptq4")
    path = written(tmp_path / "rows.jsonl", [{"text": SCRIPTS["CYRILLIC"]}] * 4)
    words = ["quantize", "builtin:tiny", "--to", kind, "--calib", str(path), "-o", str(tmp_path / "small")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 3 and "Cyrillic letters" in " ".join(done.output.split()), done.output
    assert [found.name for found in tmp_path.iterdir()] == ["rows.jsonl"]


def test_the_embedded_worlds_rows_are_plain_rows_too(tmp_path):
    path = written(tmp_path / "rows.jsonl", world.rows("instructions", "train", 12))
    found = draw(path, count=5)
    assert len(found.ids) == 5 and "<|im_start|>" in PLAIN.tokenizer.decode(found.ids[0])
    assert "<|im_start|>" not in found.text
