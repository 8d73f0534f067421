"""Metrics of the evaluate library by Hub id or local folder: importing that library takes ten seconds."""

from __future__ import annotations

import pytest

from tunekit.core.errors import UserError
from tunekit.core.registry import METRICS
from tunekit.evaluate import measured, scoring

ALLOWED = {"allow_code_execution": True}
PROGRAM = """
import datasets
import evaluate


class Gap(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features({"predictions": %(answer)s, "references": %(right)s}),
        )

    def _compute(self, predictions, references, scale=1.0):
        %(body)s
"""
GAP = "return {'gap': scale * sum(abs(len(p) - len(r)) for p, r in zip(predictions, references)) / len(references)}"
COUNT = "return {'count': [len(r) for r in references], 'other': 1}"


pytestmark = pytest.mark.usefixtures("evaluate_cache")


@pytest.fixture
def program(tmp_path):
    def write(body=GAP, answer="text", right="text", name="gap"):
        folder = tmp_path / "metrics" / name
        folder.mkdir(parents=True)
        text = PROGRAM % {"body": body, "answer": answer, "right": right}
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
        return f"hub:{folder}"

    return write


def test_each_row_is_given_by_itself(program):
    name = program()
    given = {**ALLOWED, "better": "lower", "options": {"scale": 2.0}}
    found = scoring.score(name, given, ["abc", "", "zz"], [("a",), ("ab",), ("zz",)])
    assert found.values == (4.0, 4.0, 0.0)  # twice the difference of the lengths
    assert found.number() == pytest.approx(8 / 3) and not found.higher_is_better
    assert "each row" in found.note and found.name == name


def test_several_references(program):
    one, all_at_once = program(), program(COUNT, right="[text]", name="count")
    rows = [("a", "abc"), ("x",)]
    assert scoring.score(one, {**ALLOWED, "better": "lower"}, ["abcd", "x"], rows).values == (1.0, 0.0)
    assert scoring.score(one, ALLOWED, ["abcd", "x"], rows).values == (3.0, 0.0)
    assert scoring.score(all_at_once, ALLOWED, ["abcd", "x"], rows).values == (2.0, 1.0)
    assert scoring.score(all_at_once, {**ALLOWED, "key": "other"}, ["abcd", "x"], rows).values == (1.0, 1.0)


def test_code_runs_only_when_allowed(program):
    name = program("raise SystemExit('it ran')")
    with pytest.raises(UserError, match="written by whoever published it"):
        scoring.check(name, {}, [("a",)])
    with pytest.raises(UserError, match="written by whoever published it"):
        measured.check_metrics([name], [("a",)], ["rows:1"])


@pytest.mark.parametrize(
    ("body", "options", "told"),
    [
        ("raise ValueError('no such scale')", {}, "failed on the answer 'abc': no such scale"),
        ("return {'gap': float('nan')}", {}, "gives nan as 'gap' for the answer 'abc'"),
        ("return {'a': 1, 'b': 2}", {}, "gives None as 'gap'"),
        ("return {'gap': 1}", {"key": "gasp"}, "gives None as 'gasp'"),
        ("return {'gap': [1, 2]}", {}, r"gives \[1, 2\] as 'gap'"),
    ],
)
def test_a_module_that_gives_no_number(program, body, options, told):
    with pytest.raises(UserError, match=told):
        scoring.score(program(body), {**ALLOWED, **options}, ["abc"], [("a",)])


def test_the_numbers_that_there_are_stand_in_the_fix(program):
    with pytest.raises(UserError) as error:
        scoring.score(program("return {'a': 1, 'b': 2}"), ALLOWED, ["abc"], [("a",)])
    assert "a, b" in error.value.problems[0].fix


def test_refused_before_anything_is_computed(program):
    numbers = "datasets.Value('int64')"
    with pytest.raises(UserError, match="does not compare an answer with its references"):
        scoring.check(program(answer=numbers, right=numbers), ALLOWED, [("a",)])
    with pytest.raises(UserError, match="cannot be loaded"):
        scoring.check("hub:no_such_metric_anywhere", ALLOWED, [("a",)])
    with pytest.raises(UserError, match="no option 'allow_code'") as error:
        scoring.check(program(name="other"), {"allow_code": True}, [("a",)])
    assert "allow_code_execution" in error.value.problems[0].fix


def test_names():
    assert METRICS.knows("hub:accuracy") and not METRICS.knows("hub:") and not METRICS.knows("hubaccuracy")
    assert not any(name.startswith("hub") for name in METRICS.names)
    with pytest.raises(UserError, match="unknown metric 'hubaccuracy'"):
        METRICS.load("hubaccuracy")
