import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from runs_for_tests import EVALUATION, RECORD, make_run

from tunekit.core.errors import UserError
from tunekit.runs.lock import RunLock
from tunekit.runs.record import ProgressPart, Record, read_record, write_record
from tunekit.runs.report import write_report
from tunekit.runs.summary import console_summary, plain_summary
from tunekit.runs.table import progress_of, run_details, runs_grid, runs_table
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
         38.6 % trained tokens, 1.2 % padding
         model FLOPs utilization (MFU) 40.6 % of 18.20 TFLOP/s
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


TRACE = "RuntimeError: the kernel failed " + "for a reason that takes long to tell " * 3 + "\nat line 7\nat line 8"


def unfinished(path, status, *, checkpoint=None, steps=0, error=None, planned=40):
    """A run folder as a run leaves it that ended before its end; logged every tenth step."""
    gone = dict.fromkeys(("evaluation", "training", "artefact"))
    problems = [{"what": error}] if error else []
    block = {"title": "t", "problems": problems} if error else None
    progress = {"planned_steps": planned}
    folder = make_run(path, status=status, exit_code=1, error=block, progress=progress, **gone)
    logged = [{"step": step, "loss": 4.0 - step / 10} for step in range(10, steps + 1, 10)]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in logged))
    rows = [json.dumps({"step": step, "rows": [[step] * 9000]}) + "\n" for step in range(1, steps + 1)]
    folder.samples(0).write_text("".join(rows) + '{"step": 99, "ro')  # the last line was torn
    for step in checkpoint or ():
        kept = folder.checkpoints / f"step-{step:06d}"
        kept.mkdir(parents=True)
        (kept / "weights").write_text("12345")
        (kept / "MANIFEST.json").write_text(json.dumps({"files": {"weights": {"size": 5}}}))
    return folder


def test_how_far_a_run_came_is_read_from_its_folder(tmp_path):
    folder = unfinished(tmp_path / "x y", "failed", checkpoint=(10, 20), steps=27)
    progress = progress_of(folder, read_record(folder))
    assert (progress.step, progress.planned_steps, progress.loss, progress.loss_step) == (27, 40, 2.0, 20)
    assert progress.checkpoint == "checkpoints/step-000020"
    assert progress.command == f"tunekit resume '{folder.path}'"
    (folder.checkpoints / "step-000020" / "weights").write_text("1234")  # no longer whole
    assert progress_of(folder, read_record(folder)).checkpoint == "checkpoints/step-000010"
    (folder.checkpoints / "step-000010" / "MANIFEST.json").write_text("{")
    assert progress_of(folder, read_record(folder)).checkpoint is None
    folder.metrics.write_text("{\n")
    folder.samples(0).unlink()
    assert progress_of(folder, read_record(folder), ended=False) == ProgressPart(planned_steps=40)


def test_show_tells_how_far_a_run_came_and_how_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = unfinished(Path("x"), "running", checkpoint=(10, 20), steps=27)  # nobody holds it: it was killed
    text = " ".join(shown(*run_details(folder.path)).split())
    assert "It came to step 27 of 40. The last logged loss is 2.000, of step 20." in text
    assert "The newest whole checkpoint is checkpoints/step-000020: `tunekit resume x` goes on from there." in text
    assert "next tunekit resume x" in text
    with RunLock(folder.path, print):
        text = shown(*run_details(folder.path))
    assert "step 27 of 40" in text and "tunekit resume" not in text  # it is still at work


@pytest.mark.parametrize(
    ("status", "follows"),
    [("stopped", "begins the run anew."), ("failed", "begins the run anew, with --set KEY=VALUE for what is wrong")],
)
def test_show_of_a_run_without_a_checkpoint(tmp_path, monkeypatch, status, follows):
    monkeypatch.chdir(tmp_path)
    folder = unfinished(Path("x"), status, error="no luck" if status == "failed" else None)
    record = read_record(folder)
    write_record(folder, record.updated(progress=progress_of(folder, record)))
    text = " ".join(shown(*run_details(folder.path)).split())
    assert f"No training step was done. There is no checkpoint: `tunekit resume x` {follows}" in text
    assert "next tunekit resume x" in text
    assert "begins the run anew" in write_report(folder).read_text()


def test_the_command_is_one_for_where_the_user_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = unfinished(Path("runs/x"), "stopped", checkpoint=(10,), steps=10)
    record = read_record(folder)
    write_record(folder, record.updated(progress=progress_of(folder, record)))
    monkeypatch.chdir(tmp_path / "runs")
    assert "next tunekit resume x" in " ".join(shown(*run_details(Path("x"))).split())


def test_a_long_error_is_cut_in_the_list_and_whole_in_show(tmp_path):
    folder = unfinished(tmp_path / "x", "failed", error=TRACE, steps=27)
    (row,) = runs_table(tmp_path)
    assert row.note == "RuntimeError: the kernel failed for a reason that takes lon…"
    text = shown(runs_grid([row]))
    assert "at line 7" not in text and all(len(line) <= 80 for line in text.splitlines())
    text = shown(*run_details(folder.path))
    assert "at line 7" in text and "at line 8" in text


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
    assert "         38.6 % trained tokens, 1.2 % padding\n" in text
    assert "MFU" not in text
    older = {name: training[name] for name in ("steps", "epochs", "tokens", "trained_tokens", "tokens_per_second")}
    folder = make_run(tmp_path / "older", training=older)
    text = plain_summary(read_record(folder), folder)
    assert "3.06k a second\ntime" in text
    assert "MFU" not in write_report(folder).read_text().partition("<main>")[2].partition("small-charts")[0]


def test_one_row_has_a_value_and_no_interval(tmp_path):
    """As KTO has with one held-out row; the report too says nothing of bounds that are not known."""
    unknown = {"low": float("nan"), "high": float("nan")}
    task = EVALUATION["tasks"][1] | {
        "n": 1,
        "base": {"value": 8.0} | unknown,
        "tuned": {"value": 7.5} | unknown,
        "difference": {"value": -0.5, "p_value": float("nan")} | unknown,
        "verdict": "no detectable difference",
    }
    folder = make_run(tmp_path / "x", evaluation={"tasks": [task]})
    record = read_record(folder)
    assert headline(record).details == ("Perplexity: no detectable difference (1 example).",)
    text = plain_summary(record, folder)
    assert "8.000" in text and "7.500" in text and "-0.5000" in text and "nan" not in text
    assert ">nan" not in write_report(folder).read_text().partition("<main>")[2]


def test_the_base_is_named_where_it_is_a_policy_that_had_learnt_before(tmp_path):
    """`base` is the started adapter's policy for methods that go on from it; sft's stays the model itself."""
    task = EVALUATION["tasks"][0]
    for method, said in (("dpo", True), ("sft", False)):
        folder = make_run(tmp_path / method, evaluation={"tasks": [task]})
        folder.plan.write_text(plan_with_start(method), encoding="utf-8")
        record = read_record(folder)
        words = "Base: the policy as it began, with the adapter runs/support-sft."
        assert (words in " ".join(plain_summary(record, folder).split())) is said
        assert (words in write_report(folder).read_text()) is said
    folder.plan.write_text("{}", encoding="utf-8")  # of another version: the run is shown all the same
    assert "Base:" not in plain_summary(record, folder)


def plan_with_start(method):
    """A plan of a run that goes on from an adapter."""
    from tunekit.plan.hardware import Hardware
    from tunekit.plan.resolve import resolve
    from tunekit.recipe.document import parse
    from tunekit.recipe.load import check

    text = (
        f"method: {method}\nmodel: {{name: builtin:tiny}}\ndata: {{train: [{{path: builtin:preferences}}]}}\n"
        "adapter: {kind: lora, start: runs/support-sft}\ntrain: {precision: fp32}\n"
    )
    machine = Hardware(cpu="x", cores=1, memory=1 << 33, cpu_bf16=False)
    return resolve(check(parse(text, "recipe.yaml")), Path("recipe.yaml"), machine, "runs/x").model_dump_json()


def test_bounds_that_are_not_known_do_not_change_the_unit(tmp_path):
    unknown = {"value": 0.5, "low": float("nan"), "high": float("nan")}
    task = EVALUATION["tasks"][0] | {
        "tuned": unknown,
        "difference": unknown | {"p_value": float("nan")},
        "verdict": None,
    }
    folder = make_run(tmp_path / "x", evaluation={"tasks": [task]})
    text = plain_summary(read_record(folder), folder)
    assert "50.0 %" in text and "+50.0" in text and "nan" not in text and "p =" not in text
    assert "50.0 %" in write_report(folder).read_text()
