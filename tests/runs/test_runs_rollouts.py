"""rollouts.jsonl: how it is read, and the report's table of answers."""

import html
import json
import math
import re
from itertools import pairwise

import pytest
from rewards_for_tests import RL, answer, lines_of, reward_run
from test_runs_report import page_of

from tunekit.core.errors import UserError
from tunekit.runs.metrics import MetricsWriter
from tunekit.runs.rollouts import read_rollouts


def rows_of(source):
    """Each row's attributes and cells of the table of answers, as texts."""
    table = re.search(r'<tbody id="answers-rows">(.*?)</tbody>', source, re.DOTALL)
    found = []
    for attributes, row in re.findall(r"<tr([^>]*)>(.*?)</tr>", table[1], re.DOTALL):
        cells = re.findall(r'<td[^>]*data-label="(\w+)"[^>]*>(.*?)</td>', row, re.DOTALL)
        texts = {name: html.unescape(re.sub(r"<[^>]+>", "|", cell)) for name, cell in cells}
        found.append(texts | dict(re.findall(r'data-(\w+)="([^"]*)"', attributes)))
    return found


def test_the_table_says_what_the_file_says(tmp_path):
    lines = [answer(1), answer(3, "Lyon", ended=False, reward=-1.0, parts={"exact_match": 0.0, "format": "nan"})]
    source, page = page_of(reward_run(tmp_path / "x", lines_of(RL), lines))
    first, second = rows_of(source)
    assert first["Prompt"].startswith("|Capital of France? (1)|") and "Paris." in first["Prompt"]
    assert re.findall(r"[^|]+", first["Reward"]) == ["0.5000", "exact_match 0.2500", "format 1.000"]
    assert (first["KL"], first["Tokens"], first["Ended"]) == ("1.500", "3", "|✓ yes|")
    assert (second["Step"], second["Answer"], second["Ended"]) == ("3", "|Lyon|", "|✗ cut off|")
    assert "format does not apply" in second["Reward"]
    assert {key: second[key] for key in ("step", "reward", "kl", "tokens", "ended")} == {
        "step": "3", "reward": "-1", "kl": "1.5", "tokens": "3", "ended": "cut"
    }  # fmt: skip
    assert "2 of 2 shown" in page.texts and "rollouts.jsonl" not in " ".join(page.texts)


def test_a_method_without_a_reference_has_no_column_of_it(tmp_path):
    line = {key: value for key, value in answer(1).items() if key != "kl"}
    source, _ = page_of(reward_run(tmp_path / "x", lines_of(RL), [line]))
    assert "KL" not in rows_of(source)[0] and 'value="-kl"' not in source


def test_numbers_that_are_not_finite_or_not_there(tmp_path):
    lines = [answer(1, reward="nan", kl="inf", parts={"a": None}), {"step": 2}]
    broken, bare = rows_of(page_of(reward_run(tmp_path / "x", lines_of(RL), lines))[0])
    assert broken["Reward"].startswith("||nan|") and broken["KL"] == "inf"
    assert (broken["reward"], broken["kl"]) == ("", "Infinity")
    assert (bare["Answer"], bare["Tokens"], bare["Ended"]) == ("||(empty)||", "–", "–")


@pytest.mark.parametrize("lines", [None, [], ['{"step": 1, "answer": "torn'], ["\n"]])
def test_no_answers_no_section_or_a_clear_error(tmp_path, lines):
    folder = reward_run(tmp_path / "x", lines_of(RL), lines)
    if lines == ["\n"]:
        with pytest.raises(UserError, match="damaged rollouts") as caught:
            page_of(folder)
        assert caught.value.problems[0].where == f"{folder.rollouts}:1"
    else:
        assert "Answers over the run" not in page_of(folder)[1].texts


@pytest.mark.parametrize("line", ["[1]\n", '{"answer": "no step"}\n', '{"step": "soon"}\n', "{\n"])
def test_a_damaged_line_is_named(tmp_path, line):
    folder = reward_run(tmp_path / "x", lines_of(RL), [answer(1), line])
    with pytest.raises(UserError, match="damaged rollouts") as caught:
        page_of(folder)
    assert caught.value.problems[0].where == f"{folder.rollouts}:2"


def test_a_line_torn_in_the_middle_of_a_character_is_left_out(tmp_path):
    folder = reward_run(tmp_path / "x", lines_of(RL), [answer(1)])
    with folder.rollouts.open("ab") as file:
        file.write(json.dumps(answer(2, "巴黎"), ensure_ascii=False).encode()[:80])
    assert [row["Step"] for row in rows_of(page_of(folder)[0])] == ["1"]


def test_texts_are_escaped_and_lose_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hunter2-hunter2")
    evil = "</script><script>alert(1)</script><img src=x onerror='x'>"
    line = answer(1, f"{evil} hunter2-hunter2", prompt=evil, reference=evil, parts={evil: 1.0})
    source, page = page_of(reward_run(tmp_path / "x", lines_of(RL), [line]))
    assert "alert(1)</script>" not in source and "<img" not in source and "hunter2" not in source
    assert source.count(html.escape(evil)) == 4 and "img" not in page.tags


def test_many_long_answers_are_cut_and_told(tmp_path):
    lines = [answer(step, f"{step}: " + "ab " * 2000) for step in range(1, 1001)]
    folder = reward_run(tmp_path / "x", lines_of(RL), lines)
    source, page = page_of(folder)
    rows, text = rows_of(source), " ".join(page.texts)
    steps = [int(row["Step"].replace(",", "")) for row in rows]
    assert len(steps) == 200 and (steps[0], steps[-1]) == (1, 1000) and steps == sorted(set(steps))
    assert max(after - before for before, after in pairwise(steps)) <= 6
    assert "200 of 1,000 are shown" in text and "Texts are cut after 1,500 characters." in text
    assert rows[0]["Answer"].endswith("… 4,503 more characters||")  # 3 + 6,000 - 1,500
    assert len(source) < 1_000_000


def test_a_text_that_reads_like_a_number_stays_a_text(tmp_path):
    """read_metrics takes "nan" for a number; an answer may be that word."""
    folder = reward_run(tmp_path / "x", [], [answer(1, "nan", prompt="inf"), answer(2, kl="nan")])
    (first, second), total = read_rollouts(folder.rollouts, 10)
    assert (first.prompt, first.answer, total) == ("inf", "nan", 2) and math.isnan(second.kl)


SEPARATORS = "one\u2028two\x85three\x0cfour\u2029five"


def test_separators_of_lines_in_a_text_are_no_ends_of_lines(tmp_path):
    """A model may write U+2028; the file that holds it is opened again at each window, and read for the report."""
    folder = reward_run(tmp_path / "x", lines_of(RL))
    for step in range(3):
        with MetricsWriter(folder.rollouts, keep_through=step) as writer:
            writer.write(answer(step + 1, SEPARATORS))
    found, total = read_rollouts(folder.rollouts, 10)
    assert total == 3 and [one.answer for one in found] == [SEPARATORS] * 3
    with MetricsWriter(folder.rollouts, keep_through=2) as writer:
        writer.write(answer(3, "again"))
    assert [one.answer for one in read_rollouts(folder.rollouts, 10)[0]] == [SEPARATORS, SEPARATORS, "again"]


@pytest.mark.parametrize(("total", "most", "steps"), [(5, 5, [0, 1, 2, 3, 4]), (9, 3, [0, 4, 8]), (3, 1, [0])])
def test_the_chosen_are_spread_evenly(tmp_path, total, most, steps):
    folder = reward_run(tmp_path / "x", [], [answer(step) for step in range(total)])
    found, there = read_rollouts(folder.rollouts, most)
    assert [one.step for one in found] == steps and there == total
