import json
import math

import pytest

from tunekit.core.errors import UserError
from tunekit.runs.metrics import MetricsWriter, read_metrics
from tunekit.runs.wording import compact, duration, json_ready, number, sparkline


def test_lines_are_flushed_and_strict_json(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write({"step": 1, "loss": math.nan, "grad_norm": -math.inf})
        line = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))  # before it is closed
        assert line == {"step": 1, "loss": "nan", "grad_norm": "-inf"}
    [row] = read_metrics(path)
    assert math.isnan(row["loss"]) and row["grad_norm"] == -math.inf and row["step"] == 1


def test_numbers_of_other_libraries(tmp_path):
    numpy = pytest.importorskip("numpy")
    assert json_ready({"a": numpy.float32(0.5), "b": numpy.int64(3), "c": (True, None)}) == {
        "a": 0.5,
        "b": 3,
        "c": [True, None],
    }
    with pytest.raises(TypeError, match="no JSON form"):
        json_ready(object())


def test_a_torn_line_is_cut_off_and_writing_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]
    with MetricsWriter(path) as writer:
        writer.write({"step": 2})
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_a_resumed_run_forgets_the_steps_it_repeats(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        for step in range(1, 6):
            writer.write({"step": step})
    with MetricsWriter(path, keep_through=3) as writer:
        writer.write({"step": 4, "again": True})
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(UserError) as caught:
        read_metrics(path)
    assert caught.value.problems[0].where == f"{path}:2"
    assert read_metrics(tmp_path / "none") == []


NUMBERS = {
    0.0: "0",
    1.23456: "1.235",
    0.051234: "0.05123",
    2e-5: "2.0e-05",
    12345.6: "12,346",
    math.nan: "nan",
    math.inf: "inf",
    None: "–",
}
COUNTS = {812: "812", 999.6: "1.00k", 12_400: "12.4k", 1.536e9: "1.54B"}
TIMES = {0.42: "0.4 s", 59.97: "1 min 00 s", 125: "2 min 05 s", 7500: "2 h 05 min", 200_000: "2 d 7 h"}


@pytest.mark.parametrize(("show", "known"), [(number, NUMBERS), (compact, COUNTS), (duration, TIMES)])
def test_numbers_counts_and_times_in_words(show, known):
    assert [show(value) for value in known] == list(known.values())


def test_sparkline():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1, 1]) == "▄▄"
    assert sparkline([2, math.nan, 1]) == "█×▁"
    assert len(sparkline(range(100), 30)) == 30
