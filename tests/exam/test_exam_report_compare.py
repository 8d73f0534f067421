import math

import pytest
from exam_for_tests import RECORD, make_exam, row, task

from tunekit.core.errors import DataError
from tunekit.exam.facts import RESULTS, ExamRecord
from tunekit.exam.markdown import comparison_markdown
from tunekit.exam.report_compare import compare_rows, table_of
from tunekit.exam.show import plain_comparison
from tunekit.runs.layout import RunFolder
from tunekit.runs.record import Record, write_record


def rows_of(values, metric="exact_match", **more):
    return [row("support", metric, f"a:{n}", None, value, **more) for n, value in enumerate(values)]


def exam(path, values, metric="exact_match", rows=None, **more):
    mean = math.fsum(values) / len(values)
    one = task("support", metric, len(values), None, (mean, max(0.0, mean - 0.1), mean if mean == 1 else mean + 0.1),
               None, None, **more)  # fmt: skip
    return make_exam(path, rows or rows_of(values, metric), tasks=[one], forgetting=None, contamination=None)


def test_each_model_is_compared_with_the_first(tmp_path):
    first = exam(tmp_path / "a", [0.0] * 8 + [1.0] * 12)
    better = exam(tmp_path / "b", [1.0] * 20)
    other = exam(tmp_path / "c", [0.0] * 7 + [1.0] * 13)
    table = compare_rows([first, better, other])
    assert table.models == ("a", "b", "c") and table.notes == ()
    (line,) = table.lines
    # 8 rows gained, none lost: McNemar's p is 2 / 2**8; one row gained: p is 1
    assert line.cells[1].difference.p_value == pytest.approx(2 / 2**8)
    assert line.cells[1].difference.value == pytest.approx(0.4) and line.cells[1].verdict == "better"
    assert line.cells[2].difference.p_value == 1.0 and line.cells[2].verdict == "no detectable difference"
    assert line.cells[0].difference is None and line.cells[1].base == line.cells[0].tuned
    shown = plain_comparison(table)
    assert "+40.0 better" in shown and "+5.0 no" in shown
    assert "| 60.0 % (50.0–70.0) | 100.0 % (90.0–100.0), +40.0 better | 65.0 % (" in comparison_markdown(table)


def test_rows_are_paired_by_place_not_by_order(tmp_path):
    values = [0.0, 0.0, 1.0, 1.0, 1.0]
    first = exam(tmp_path / "a", values)
    turned = exam(tmp_path / "b", values, rows=rows_of(values)[::-1])
    found = compare_rows([first, turned]).lines[0].cells[1].difference
    assert (found.value, found.p_value) == (0.0, 1.0)


def test_other_rows_are_refused_and_counted(tmp_path):
    first = exam(tmp_path / "a", [0.0] * 5)
    more = exam(tmp_path / "b", [0.0] * 7)
    other = exam(tmp_path / "c", [0.0] * 5, rows=rows_of([0.0] * 5, reference="Something else."))
    twice = exam(tmp_path / "d", [0.0] * 5, rows=rows_of([0.0] * 5) + rows_of([0.0]))
    with pytest.raises(DataError) as error:
        compare_rows([first, more, other, twice])
    assert [(problem.what, problem.where) for problem in error.value.problems] == [
        (f"task support was evaluated on other rows than in {first}: {said}", str(path))
        for said, path in (
            ("2 rows in one of the two only", more),
            ("5 rows with another reference", other),
            ("1 row in one of the two only", twice),
        )
    ]


def test_folders_without_a_common_task_are_refused(tmp_path):
    first = exam(tmp_path / "a", [0.0] * 5)
    second = make_exam(tmp_path / "b", [row("other", "exact_match", "a:1", None, 1.0)],
                       tasks=[RECORD["tasks"][0] | {"name": "other"}], forgetting=None)  # fmt: skip
    with pytest.raises(DataError, match="no task in common"):
        compare_rows([first, second])


def test_a_run_is_shown_but_not_compared_for_want_of_rows(tmp_path):
    first = exam(tmp_path / "a", [0.0, 1.0] * 5)
    part = {key: value for key, value in RECORD["tasks"][0].items() if key not in ("clean", "seconds")}
    run = RunFolder(tmp_path / "run")
    record = Record(method="sft", status="done", created="", evaluation={"tasks": [part]})
    run.path.mkdir()
    write_record(run, record)
    table = compare_rows([first, run.path])
    assert table.lines[0].cells[1].tuned.value == 0.585 and table.lines[0].cells[1].difference is None
    assert table.notes == (f"support, exact match: not compared, for want of rows in {RESULTS}",)


def nats(values, weights):
    return [one | {"weight": weight} for one, weight in zip(rows_of(values, "perplexity"), weights, strict=True)]


def test_perplexities_are_paired_by_their_tokens(tmp_path):
    more = {"higher_is_better": False, "statistic": "perplexity"}
    values, weights = [0.5, 1.25] * 6, [1.0, 2.0] * 6
    first = exam(tmp_path / "a", values, "perplexity", nats(values, weights), **more)
    half = exam(tmp_path / "b", values, "perplexity", nats([v / 2 for v in values], weights), **more)
    found = compare_rows([first, half]).lines[0].cells[1]
    # 18 tokens of 6 * (0.5 * 1 + 1.25 * 2) = 18 nats: e; of 9 nats: the root of e
    assert found.difference.value == pytest.approx(math.sqrt(math.e) - math.e) and found.verdict == "better"
    other = exam(tmp_path / "c", values, "perplexity", nats(values, [w + 1 for w in weights]), **more)
    bare = exam(tmp_path / "d", values, "perplexity", **more)
    assert "count other tokens" in compare_rows([first, other]).notes[0]
    assert "want of weights" in compare_rows([bare, bare]).notes[0]


def test_corpus_numbers_are_paired_by_their_totals(tmp_path):
    sacrebleu = pytest.importorskip("sacrebleu")
    from tunekit.evaluate.scoring import score

    right = [("the cat sat on the mat today",), ("a dog ran in the park again",)] * 8
    said = [[text.replace("cat", "cow") for (text,) in right], [text for (text,) in right]]
    folders = []
    for name, texts in zip("ab", said, strict=True):
        scores = score("bleu", {}, texts, right)
        rows = [
            one | {"tuned_totals": list(totals)}
            for one, totals in zip(rows_of([math.nan] * len(texts), "bleu"), scores.totals, strict=True)
        ]
        folders.append(exam(tmp_path / name, [1.0] * len(texts), "bleu", rows, statistic="corpus", options={}))
    cell = compare_rows(folders).lines[0].cells[1]
    theirs = [sacrebleu.corpus_bleu(texts, [[text for (text,) in right]]).score for texts in said]
    assert cell.difference.value == pytest.approx(theirs[1] - theirs[0], rel=1e-6) and cell.difference.value > 1e-3
    bare = exam(tmp_path / "c", [1.0] * 16, "bleu", rows_of([math.nan] * 16, "bleu"), statistic="corpus")
    assert compare_rows([bare, bare]).notes == (f"support, bleu: not compared, for want of totals in {RESULTS}",)
    other = exam(tmp_path / "d", [1.0] * 16, "bleu", rows, statistic="corpus", options={"lowercase": True})
    assert "the metric was set in another way" in compare_rows([folders[0], other]).notes[0]


def test_a_row_without_a_number_leaves_no_verdict(tmp_path):
    first = exam(tmp_path / "a", [0.0, 1.0, 1.0])
    broken = exam(tmp_path / "b", [0.0, 1.0, 1.0], rows=rows_of([0.0, math.nan, 1.0]))
    cell = compare_rows([first, broken]).lines[0].cells[1]
    assert math.isnan(cell.difference.value) and cell.verdict is None
    assert "not a number" in plain_comparison(compare_rows([first, broken]))


def test_many_models_are_shown_in_parts_of_whole_numbers():
    record = ExamRecord.model_validate(RECORD)
    table = table_of([(f"runs/a-long-name-of-a-model-{n}", record) for n in range(9)])
    shown = plain_comparison(table, width=80)
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert shown.count("58.5 %") == shown.count("53.6–63.2") == 9
    assert [line.name for line in table.lines] == ["support", "support", "topics", "wiki", "common sense"]


def test_models_of_one_line_are_shown_in_one_unit():
    rated = [task("judge", "rating", 9, None, (value, value, value), None, None) for value in (0.8, 3.2)]
    records = [(f"m{at}", ExamRecord.model_validate(RECORD | {"tasks": [one]})) for at, one in enumerate(rated)]
    shown = plain_comparison(table_of(records))
    assert "0.8000" in shown and "3.200" in shown and "80.0 %" not in shown
