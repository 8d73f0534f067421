import io

import pytest
from rich.console import Console
from runs_for_tests import EVALUATION, RECORD, make_run

from tunekit.core.errors import UserError
from tunekit.runs.record import Record, read_record
from tunekit.runs.report import write_report
from tunekit.runs.summary import console_summary, plain_summary
from tunekit.runs.table import run_details, runs_grid, runs_table
from tunekit.runs.verdict import headline


def judged(*verdicts, base=True):
    tasks = []
    for at, verdict in enumerate(verdicts):
        task = EVALUATION["tasks"][at % 2] | {"metric": f"m{at}", "verdict": verdict}
        tasks.append(task if base else task | {"base": None, "difference": None, "verdict": None})
    return Record(method="sft", status="done", created="", evaluation={"tasks": tasks})


@pytest.mark.parametrize(
    ("record", "tone", "says"),
    [
        (judged("better"), "good", "It helped: m0 rose from 31.2 % to 58.4 %."),
        (judged("worse"), "bad", "It hurt"),
        (judged("no detectable difference"), "neutral", "No detectable difference: m0 31.2 % before, 58.4 % after."),
        (judged("no detectable difference", "better"), "good", "It helped: m1 fell from 8.214 to 3.127."),
        (judged("better", "worse"), "neutral", "A trade: better in m0, worse in m1."),
        (judged("better", base=False), "neutral", "Trained: m0 58.4 %."),
        (Record(method="sft", status="done", created=""), "neutral", "Trained, not evaluated."),
        (Record(method="sft", status="stopped", created=""), "neutral", "The run was stopped before its end."),
        (Record(method="sft", created=""), "neutral", "The run is not finished."),
        (Record(method="sft", status="failed", exit_code=1, created=""), "bad", "The run failed: exit code 1"),
    ],
)
def test_headlines(record, tone, says):
    words = headline(record)
    assert words.tone == tone and words.title.startswith(says)


SUMMARY = """\
It helped: exact match rose from 31.2 % to 58.4 %.

metric               base        tuned        difference  verdict
───────────────────────────────────────────────────────────────────
exact match        31.2 %       58.4 %             +27.2  better
500 examples    27.2–35.4    54.0–62.7    +22.1 to +32.0  p < 0.001
perplexity          8.214        3.127            -5.087  better
200 examples  7.610–8.900  2.980–3.290  -5.700 to -4.500  p < 0.001

prompt               reference           base                tuned
────────────────────────────────────────────────────────────────────────────────
How do I reset my    Open Settings,      ✗ Passwords are     ✓ Open Settings,
password?            then Security,      important. You      then Security, then
                     then Reset          should write to     Reset password.
                     password.           <script>alert('no'
                                         )</script> & wait.
Which plan includes  Business.           ✓ Business.         ✗ Team.
single sign-on?
Can I export my      Yes, as CSV, under  ✗ (empty)           ✓ Yes, as CSV,
data?                Settings / Export.                      under Settings /
                                                             Export.

trained  244 steps, 3.64M tokens at 3.06k a second
         38.6 % bore loss, 1.2 % padding, MFU 40.6 % of 18.20 TFLOP/s
time     21 min 29 s
model    runs/support-bot/model
report   runs/support-bot/report.html
record   runs/support-bot/record.json
next     tunekit chat runs/support-bot
         tunekit runs show runs/support-bot
"""


def test_the_console_summary_at_80_columns(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_report(run)
    folder = type(run)(run.path.relative_to(tmp_path))
    commands = ["tunekit chat runs/support-bot", "tunekit runs show runs/support-bot"]
    assert plain_summary(read_record(run), folder, commands) == SUMMARY


def test_the_summary_of_a_run_without_a_base_or_marks(tmp_path):
    task = EVALUATION["tasks"][1] | {"base": None, "difference": None, "verdict": None}
    samples = [{"prompt": "[bold]p[/bold] " * 40, "tuned": "t"}]
    folder = make_run(tmp_path / "x", evaluation={"tasks": [task], "samples": samples})
    text = plain_summary(read_record(folder), folder)
    assert "not compared" in text and "[bold]p[/bold]" in text and "…" in text
    assert "report" not in text  # none was written


def shown(*parts, width=80):
    console = Console(width=width, record=True, force_terminal=False, color_system=None, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.export_text()


def test_the_list_is_newest_first_and_survives_a_damaged_run(tmp_path):
    make_run(tmp_path / "old")
    make_run(tmp_path / "new", created="2026-04-01T09:00:00Z", evaluation=None, training=None)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "record.json").write_text("{")
    rows = runs_table(tmp_path)
    assert [(row.name, row.status) for row in rows] == [("new", "done"), ("old", "done"), ("bad", "unreadable")]
    assert (rows[1].metric, rows[1].values, rows[1].steps) == ("exact match", "31.2 % → 58.4 %", 244)
    text = shown(runs_grid(rows))
    assert "31.2 % → 58.4 %" in text and "damaged record" in text and "2026-04-01" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "no runs here yet" in shown(runs_grid([]))


def test_show_tells_everything(run):
    text = shown(*run_details(run.path))
    for expected in (
        "support-bot",
        "It helped",
        "3,801",
        "19 min 50 s",
        "2.11.0",
        "4be1c0de4be1",
        "uncommitted changes",
    ):
        assert expected in text, expected
    with pytest.raises(UserError, match="not a run folder"):
        run_details(run.path / "model")


def test_the_summary_renders_in_colour_too(run):
    console = Console(width=100, force_terminal=True, record=True, file=io.StringIO())
    console.print(console_summary(read_record(run), run))
    assert "It helped" in console.export_text()


def test_a_run_that_did_not_measure_its_device_names_no_mfu(tmp_path):
    training = {name: value for name, value in RECORD["training"].items() if name not in ("mfu", "matmul_tflops")}
    folder = make_run(tmp_path / "x", training=training)
    text = plain_summary(read_record(folder), folder)
    assert "         38.6 % bore loss, 1.2 % padding\n" in text
    older = {name: training[name] for name in ("steps", "epochs", "tokens", "trained_tokens", "tokens_per_second")}
    folder = make_run(tmp_path / "older", training=older)
    text = plain_summary(read_record(folder), folder)
    assert "3.06k a second\ntime" in text
    assert "MFU" not in write_report(folder).read_text().partition("<main>")[2].partition("small-charts")[0]


def test_bounds_that_are_not_known_do_not_change_the_unit(tmp_path):
    unknown = {"value": 0.5, "low": float("nan"), "high": float("nan")}
    task = EVALUATION["tasks"][0] | {
        "tuned": unknown,
        "difference": unknown | {"p_value": float("nan")},
        "verdict": None,
    }
    folder = make_run(tmp_path / "x", evaluation={"tasks": [task]})
    text = plain_summary(read_record(folder), folder)
    assert "50.0 %" in text and "nan–nan" in text and "p =" not in text
    assert "50.0 %" in write_report(folder).read_text()
