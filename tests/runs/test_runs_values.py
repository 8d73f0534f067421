"""The report's charts of what preference and RL runs measure, and the table of `runs show`."""

import html
import io
import json
import re

import pytest
from rewards_for_tests import JUDGED, PAIRS, RL, RL_HELD_OUT, lines_of, reward_run
from rich.console import Console
from runs_for_tests import metric_lines
from test_runs_report import page_of

from tunekit.runs.charts import ticks
from tunekit.runs.last_values import last_values
from tunekit.runs.table import run_details
from tunekit.runs.values import arranged, further, value_name


def islands_of(source):
    """The points of every chart, by its title."""
    found = {}
    for figure in re.findall(r"<figure.*?</figure>", source, re.DOTALL):
        title = re.search(r'class="chart-title">(.*?)</span>', figure)
        island = re.search(r'<script type="application/json">(.*?)</script>', figure)
        if title:
            found[html.unescape(title[1])] = {line["name"]: line["points"] for line in json.loads(island[1])["series"]}
    return found


@pytest.mark.parametrize(
    ("values", "held_out", "titles"),
    [
        (
            PAIRS,
            None,
            ["Reward accuracy", "Reward margin", "Worth of chosen and rejected answers",
             "Log-probability of the answers"],
        ),
        (
            JUDGED,
            None,
            ["Reward margin", "Worth of good and bad answers", "Distance from the reference (KL estimate)"],
        ),
        (
            RL,
            RL_HELD_OUT,
            ["Reward", "Reward by part", "Spread of rewards", "Distance from the reference (KL)",
             "Price of the distance (KL)", "Movement within a window (approximate KL)", "Clipped tokens",
             "Answer length", "Answers that ended", "Entropy", "Loss of the values",
             "Explained variance of the values", "Clipped values"],
        ),
    ],
)  # fmt: skip
def test_every_value_is_in_one_chart_with_its_held_out_twin(tmp_path, values, held_out, titles):
    folder = reward_run(tmp_path / "x", lines_of(values, held_out))
    source, _ = page_of(folder)
    charts = islands_of(source)
    assert list(charts) == ["Loss", *titles, "Learning rate", "Tokens per second"]
    drawn = sum(len(charts[title]) for title in titles)
    assert drawn == len(values) + len(values if held_out is None else held_out)
    assert all(len(points) in (4, 1) for title in titles for points in charts[title].values())


def test_the_points_are_those_of_the_file(tmp_path):
    charts = islands_of(page_of(reward_run(tmp_path / "x", lines_of(RL, RL_HELD_OUT)))[0])
    assert charts["Reward"] == {
        "training": [[1, 0.497, "0.4970"], [2, 0.498, "0.4980"], [3, 0.499, "0.4990"], [4, 0.5, "0.5000"]],
        "held-out": [[4, 0.625, "0.6250"]],
    }
    assert charts["Reward by part"]["format, held-out"] == [[4, 0.875, "0.8750"]]
    assert charts["Answers that ended"]["training"][-1] == [4, 0.9375, "93.8 %"]


def test_charts_say_what_they_mean_and_that_a_policys_loss_does_not(tmp_path):
    text = " ".join(page_of(reward_run(tmp_path / "x", lines_of(RL)))[1].texts)
    assert "The loss of a policy says little by itself" in text and "Near 0 it always writes the same" in text
    text = " ".join(page_of(reward_run(tmp_path / "y", lines_of(PAIRS)))[1].texts)
    assert "The loss of a policy" not in text and "Guessing gets 50 %" in text


def test_a_run_without_such_values_has_none_of_it(run):
    source, page = page_of(run)
    assert "What the method measures" not in page.texts and "Answers over the run" not in page.texts
    assert list(islands_of(source)) == [
        "Loss", "Learning rate", "Gradient norm", "Tokens per second", "MFU (model FLOPs utilization)"
    ]  # fmt: skip
    assert last_values(metric_lines()) is None


def test_unknown_values_get_charts_of_their_own_and_nothing_vanishes(tmp_path):
    """Also with one point alone, on the held-out rows alone, and named as a value that every run has."""
    odd = {"step": 5, "loss": 1.0, "my/metric_a": 3.0, "eval_only_here": 4.0, "eval_seconds": 9.0, "flag": True}
    charts = islands_of(page_of(reward_run(tmp_path / "x", [*lines_of({}), odd]))[0])
    assert charts["My metric a"] == {"training": [[5, 3.0, "3.000"]]}
    assert charts["Only here"] == {"held-out": [[5, 4.0, "4.000"]]}
    assert charts["Eval seconds"] == {"training": [[5, 9.0, "9.000"]]}
    assert "Flag" not in charts


def test_many_unknown_values_are_cut_and_told(tmp_path):
    many = {f"value_{at}": 1.0 for at in range(100)}
    source, page = page_of(reward_run(tmp_path / "x", lines_of(many)))
    assert "40 further values: see metrics.jsonl." in page.texts
    assert len(islands_of(source)) == 60 + 3


def test_many_parts_are_split_by_the_colours():
    charts = arranged(further([{f"reward/p{at}": 1.0 for at in range(13)}]))
    assert [len(chart.lines) for chart in charts] == [6, 6, 1]
    assert [chart.title for chart in charts] == ["Reward by part", "Reward by part", "Reward by part: p12"]
    assert arranged([]) == []


def test_broken_values_are_marked_and_told(tmp_path):
    lines = lines_of(RL)
    lines[1] |= {"kl": "inf", "reward/format": "nan", "entropy": "-inf"}
    for line in lines:
        line |= {"value_loss": "nan"} if "loss" in line else {"eval_value_loss": "nan"}
    source, page = page_of(reward_run(tmp_path / "x", lines))
    assert source.count('class="broken"') == 3
    assert page.texts.count("Not finite at 1 step, first at step 2.") == 3
    assert page.texts.count("no finite values") == 2  # value_loss; and the run logs no gradient norm


def test_a_run_cut_off_in_the_middle_of_a_line(tmp_path):
    lines = [*lines_of(RL)[:3], '{"step": 4, "loss": 0.25, "rewa']
    folder = reward_run(tmp_path / "x", lines, status="running", exit_code=None, training=None, evaluation=None)
    charts = islands_of(page_of(folder)[0])
    assert [len(charts[title]["training"]) for title in ("Reward", "Entropy")] == [3, 3]


def test_texts_of_names_are_escaped(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror='x'>"
    folder = reward_run(tmp_path / "x", lines_of(RL | {f"reward/{evil}": 1.0, evil: 2.0}))
    source, page = page_of(folder)
    assert "alert(1)</script>" not in source and "<img" not in source
    assert evil in islands_of(source)["Reward by part"]
    assert "img" not in page.tags


def test_a_mean_that_differs_by_its_rounding_is_flat():
    assert ticks(0.05, 0.05000000000000002) == ticks(0.05, 0.05)
    assert ticks(1e-12, 3e-12)[0] <= 1e-12  # small values are not flat


def shown(parts, width=80):
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None)
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


LAST = """\
last values                  training, step 4  held-out, step 4
───────────────────────────────────────────────────────────────
reward accuracy                        75.0 %            75.0 %
reward margin                           1.500             1.500
worth of chosen                        0.5000            0.5000
worth of rejected                      -1.000               nan
log-probability of chosen              -11.00            -11.00
log-probability of rejected   -60.00 (step 3)            -60.00
mine                                    7.000                 –
"""


def test_runs_show_has_the_last_values(tmp_path):
    lines = lines_of(PAIRS)
    lines[-1]["eval_reward_rejected"] = "nan"
    lines[3] |= {"mine": 7.0}
    lines[2]["logps_rejected"] = -60.0
    del lines[3]["logps_rejected"]
    folder = reward_run(tmp_path / "x", lines)
    parts = shown(run_details(folder.path))
    assert LAST in parts
    assert "last values" not in shown(run_details(reward_run(tmp_path / "y", metric_lines()).path))


def test_runs_show_says_parts_as_parts_and_fits(tmp_path):
    lines = lines_of(RL | {"reward/a_very_long_name_of_a_reward_that_somebody_thought_of": 1.0}, RL_HELD_OUT)
    text = shown([last_values(lines)])
    assert "reward: exact_match" in text and max(map(len, text.splitlines())) <= 80
    assert value_name("reward/kl") == "kl"


def test_runs_show_bears_damaged_metrics(tmp_path):
    folder = reward_run(tmp_path / "x", ["nonsense\n"])
    assert "last values" not in shown(run_details(folder.path))
