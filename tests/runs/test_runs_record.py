import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs_for_tests import RECORD, make_run

from tunekit.core.errors import DivergedError, Problem, UserError
from tunekit.runs.environment import git_state, library_versions
from tunekit.runs.layout import RunFolder, list_runs
from tunekit.runs.record import Record, read_record, write_record
from tunekit.runs.scrub import Scrubber, scrub


def test_what_is_written_is_read_back(run):
    assert read_record(run) == Record.model_validate(RECORD)


def test_values_that_are_not_finite_survive_as_strings(tmp_path):
    training = RECORD["training"] | {"final_loss": math.nan, "final_eval_loss": math.inf}
    folder = make_run(tmp_path / "x", training=training)
    raw = json.loads(folder.record.read_text(), parse_constant=lambda name: pytest.fail(f"not JSON: {name}"))
    assert (raw["training"]["final_loss"], raw["training"]["final_eval_loss"]) == ("nan", "inf")
    back = read_record(folder).training
    assert math.isnan(back.final_loss) and back.final_eval_loss == math.inf


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "record.json:1:2"),
        ("[]", "damaged record"),
        ('{"method": 3, "created": ""}', "method"),
        ('{"method": "sft", "created": "", "user": "me"}', "user"),
        ('{"schema_version": 99, "tunekit": "9.0"}', "9.0, which is newer"),
        ("\udcff", "damaged record"),
    ],
)
def test_a_damaged_record_is_one_clear_error(tmp_path, content, says):
    (tmp_path / "record.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=says):
        read_record(RunFolder(tmp_path))


def test_no_record_is_said_so(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        read_record(RunFolder(tmp_path))


def test_an_ended_record_carries_the_error_block():
    error = DivergedError("the loss is nan", where="step 3", fix="lower the rate", problems=[Problem("and more")])
    ended = Record(method="sft", created="2026-03-01T12:00:00Z").ended("failed", error.exit_code, error)
    assert (ended.status, ended.exit_code, ended.error.title) == ("failed", 5, "training diverged")
    assert [p.what for p in ended.error.problems] == ["the loss is nan", "and more"]
    assert ended.finished.endswith("Z")


def test_an_update_is_checked():
    with pytest.raises(ValueError, match="status"):
        Record(method="sft", created="").updated(status="fine")


def test_an_evaluation_keeps_what_this_version_does_not_know(tmp_path):
    task = RECORD["evaluation"]["tasks"][0] | {"bootstrap": 2000}
    folder = make_run(tmp_path / "x", evaluation={"tasks": [task], "samples": [], "seconds": 1.0, "judge": "none"})
    written = json.loads(folder.record.read_text())["evaluation"]
    assert written["tasks"][0]["bootstrap"] == 2000 and written["judge"] == "none"


def test_nothing_private_reaches_the_record(tmp_path, monkeypatch):
    home = tmp_path / "home" / "ada"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", "hunter2-hunter2")
    monkeypatch.setattr("socket.gethostname", lambda: "ada-laptop")
    monkeypatch.chdir(tmp_path)
    where = f"{tmp_path}/runs/x/data.jsonl:3"
    problems = [{"what": f"no access with hunter2-hunter2 to {home}/models/q on ada-laptop", "where": where}]
    sample = {"prompt": f"cat {home}/notes", "tuned": "#!/usr/bin/env with hunter2-hunter2", "where": where}
    folder = make_run(
        tmp_path / "runs" / "x",
        status="failed",
        error={"title": "t", "problems": problems},
        model=RECORD["model"] | {"name": str(home / "models" / "q")},
        evaluation={"samples": [sample]},
        hardware={"cpu": "x", "mounted": "/mnt/secret-share/data.bin", "seen": {f"{home}/x": 1}},
        seconds={"https://ada:pw@host/x": 1.0},
    )
    text = folder.record.read_text()
    for private in (str(home), str(tmp_path), "hunter2", "ada-laptop", "secret-share", "ada:pw"):
        assert private not in text, private
    record = read_record(folder)
    assert record.model.name == "~/models/q"
    assert record.error.problems[0].what == "no access with <HF_TOKEN> to ~/models/q on <host>"
    assert record.error.problems[0].where == "data.jsonl:3"  # relative to the run folder
    assert record.evaluation.samples[0].tuned == "#!/usr/bin/env with <HF_TOKEN>"  # an answer's own paths are content
    assert record.hardware["mounted"] == "…/data.bin"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/place/here/data/a.jsonl:3", "data/a.jsonl:3"),
        ("/place/here-too/a.jsonl", "…/a.jsonl"),  # a neighbour with the same beginning is not below it
        ("/place/here", "."),
        ("see https://huggingface.co/docs/x and a/b", "see https://huggingface.co/docs/x and a/b"),
        ("key hf_abcdefghijklmnopqrst!", "key <secret>!"),
        ("/home/bob/x", "~/x"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("MAX_TOKENS is 512", "MAX_TOKENS is 512"),
    ],
)
def test_scrubbed_texts(text, shown):
    where = {"run": Path("/place/here/runs/x"), "here": Path("/place/here"), "home": Path("/home/ada")}
    scrubber = Scrubber(**where, host="box", environ={"MAX_TOKENS": "512"})
    assert scrubber.text(text) == shown


def test_a_working_folder_above_the_home_does_not_leave_its_name():
    scrubber = Scrubber(run=Path("/r/x"), here=Path("/home"), home=Path("/home/ada"), host="", environ={})
    assert scrubber.text("/home/ada/models/q", content=True) == "~/models/q"


def test_a_home_at_the_root_scrubs_nothing():
    scrubber = Scrubber(run=Path("/r/x"), here=Path("/"), home=Path("/"), host="", environ={})
    assert scrubber.text("a / b /c") == "a / b /c"


def test_scrub_leaves_other_values_alone(tmp_path):
    assert scrub({"a": [1, 2.5, None, True]}, tmp_path) == {"a": [1, 2.5, None, True]}


def test_runs_are_found_below_but_not_inside_runs(tmp_path):
    for name in ("a", "deep/er/b", ".hidden/c", "a/checkpoints/d"):
        write_record(RunFolder(tmp_path / name), Record.model_validate(RECORD))
    assert [run.path.relative_to(tmp_path).as_posix() for run in list_runs(tmp_path)] == ["a", "deep/er/b"]
    assert [run.name for run in list_runs(tmp_path / "a")] == ["a"]
    assert list_runs(tmp_path / "nowhere") == []


def test_versions_are_read_without_importing():
    code = (
        "import sys, tunekit.runs.environment as e; v = e.library_versions(); print(v['torch'], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [library_versions()["torch"], "False"]


def test_git_tells_commit_and_changes(tmp_path):
    assert git_state(tmp_path) is None
    names = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}

    def git(*words):
        subprocess.run(["git", *words], cwd=tmp_path, env=os.environ | names, check=True, capture_output=True)

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "x")
    clean = git_state(tmp_path)
    assert len(clean.commit) == 40 and clean.dirty is False
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path).dirty is True


def test_interruptions_are_told_in_words():
    from tunekit.runs.environment import environment_words

    part = {"steps": 9, "epochs": 1.0, "tokens": 9, "trained_tokens": 3, "tokens_per_second": 1.0}
    back = {"step": 6, "to": 4, "why": "the loss of step 6 is nan", "skipped": (5, 6)}
    record = Record(
        method="sft",
        created="2026-01-01T00:00:00Z",
        resumed=[{"at": "2026-01-02T00:00:00Z", "step": 3, "changes": ["train.max_steps: 5 -> 9"]}],
        training=part | {"rollbacks": [back]},
    )
    assert dict(environment_words(record))["Interruptions"] == [
        ("resumed 2026-01-02T00:00:00Z", "from step 3; train.max_steps: 5 -> 9"),
        ("back to step 4", "the loss of step 6 is nan; left out: steps 5, 6"),
    ]
