"""`tunekit eval`, and `tunekit runs show` and `compare` on what it wrote: options, exit codes, what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tunekit.cli.app import app

FILES = {"record.json", "results.parquet", "report.html", "report.md"}
BARE = ["--set", "forgetting.check=false", "--set", "contamination.check=false"]
TINY = ["eval", "--model", "builtin:tiny", *BARE]
WAITED = 60.0  # seconds


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A working folder with rows in it, and kept answers of its own."""
    from huggingface_hub import constants

    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    write(place / "rows.jsonl", 4)
    return place


def write(path, count, begin=0):
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(begin, begin + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def run():
    def invoke(*words):
        return CliRunner().invoke(app, [str(word) for word in words], prog_name="tunekit")

    return invoke


def text_of(path):
    return path.read_text().replace("\\u0026", "&").replace("\\u003c", "&lt;").replace("\\u003e", "&gt;")


def left(place):
    """All that lies below a folder but the rows."""
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.name != "rows.jsonl")


# ---- what is written -------------------------------------------------------------------------------------------------


def test_an_evaluation_is_shown_and_compared(run):
    one = run(*TINY, "--data", "rows.jsonl", "--tasks", "perplexity,generation", "--limit", "3")
    assert one.exit_code == 0, one.output
    assert {path.name for path in Path("evals/tiny").iterdir()} == FILES
    assert "record  evals/tiny/record.json" in one.output
    two = run(*TINY, "-d", "rows.jsonl", "-t", "perplexity,generation", "--limit", "3", "--quiet")
    assert (two.exit_code, two.output) == (0, "") and Path("evals/tiny-2/record.json").exists()
    shown = run("runs", "show", "evals/tiny", "--report")
    assert shown.exit_code == 0 and "exact match" in shown.output and "wrote evals/tiny/report.html" in shown.output
    both = run("runs", "compare", "evals/tiny", "evals/tiny-2")
    assert both.exit_code == 0 and both.output.count("detectable") == 2, both.output
    marked = run("runs", "compare", "evals/tiny", "evals/tiny-2", "--markdown")
    assert marked.output.startswith("| Task | Metric | tiny | tiny-2 |")
    (Path("evals/tiny-2") / "results.parquet").write_bytes(b"PAR1")
    damaged = run("runs", "compare", "evals/tiny", "evals/tiny-2")
    assert damaged.exit_code == 2 and "damaged results" in damaged.output


@pytest.mark.slow
def test_events_are_json_also_where_a_number_is_not_one(run):
    """One row tells nothing of how sure a number is: its interval is nan, which JSON does not know."""
    done = run(*TINY, "--data", "rows.jsonl", "--limit", "1", "--baseline", "builtin:tiny", "--json")
    assert done.exit_code == 0, done.output

    def refuse(word):
        raise AssertionError(word)

    events = [json.loads(line, parse_constant=refuse) for line in done.stdout.splitlines()]
    assert events[-1]["event"] == "done" and events[-1]["evaluation"] == "evals/tiny"
    (task,) = events[-1]["record"]["tasks"]
    assert task["n"] == 1 and "nan" in task["difference"].values()
    failed = run(*TINY, "--data", "none.jsonl", "--json")
    assert failed.exit_code == 2 and json.loads(failed.stdout.splitlines()[-1])["event"] == "error"


def test_nothing_private_is_written(run, here, monkeypatch):
    """Places of this machine and secrets, by their shape or because the environment holds them."""
    monkeypatch.setenv("SOME_API_KEY", "verysecretvalue")
    token = "hf_" + "a" * 30
    row = {"prompt": f"My key is {token} or verysecretvalue", "completion": "It is."}
    (here / "secret.jsonl").write_text(json.dumps(row) + "\n{broken\n")
    done = run(*TINY, "-d", here / "secret.jsonl", "-t", "generation", "-o", here / "out", "-q",
               "--set", "max_drop_rate=0.5", "--set", "tasks.0.max_new_tokens=4")  # fmt: skip
    assert done.exit_code == 0, done.output
    for name in ("record.json", "report.html", "report.md"):
        text = (here / "out" / name).read_text()
        assert not [word for word in (str(here), token, "verysecretvalue") if word in text], name
    assert "My key is &lt;secret&gt; or &lt;SOME_API_KEY&gt;" in text_of(here / "out" / "report.html")


def test_rows_named_as_options_are_those_of_the_working_folder(run, here):
    """Beside the recipe lies a file of the same name."""
    (here / "sub").mkdir()
    write(here / "sub" / "rows.jsonl", 2)
    (here / "sub" / "eval.yaml").write_text("model: builtin:tiny\nforgetting: {check: false}\n")
    assert run("eval", "sub/eval.yaml", "-d", "rows.jsonl", "-o", "here", "-q").exit_code == 0
    assert run("eval", "sub/eval.yaml", "--set", "data=[{path: rows.jsonl}]", "-o", "there", "-q").exit_code == 0
    numbers = [json.loads(Path(name, "record.json").read_text())["tasks"][0]["n"] for name in ("here", "there")]
    assert numbers == [4, 2]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("runs/a", "a"),
        ("runs/a/", "a"),
        ("runs/a/model", "a"),
        ("../work", "work"),
        ("org/one", "one"),
        ("builtin:random?layers=1", "random"),
    ],
)
def test_an_evaluation_is_called_as_its_model(here, model, name):
    from tunekit.cli.evaluate import _name

    (here / "runs" / "a" / "model").mkdir(parents=True)
    (here / "runs" / "a" / "plan.json").touch()
    assert _name(model) == name


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["eval"], 2, "nothing says which model to evaluate"),
        (["eval", "-m", "builtin:tinny", "-d", "rows.jsonl"], 2, "did you mean 'tiny'?"),
        (["eval", "-m", "no-one/nothing", "-d", "rows.jsonl"], 4, "'no-one/nothing' cannot be loaded from the Hub"),
        (["eval", "-m", "./nowhere", "-d", "rows.jsonl"], 2, "there is no model folder './nowhere'"),
        (["eval", "-m", "rows.jsonl", "-d", "rows.jsonl"], 2, "'rows.jsonl' is a file"),
        ([*TINY], 2, "task 'perplexity' has no rows"),
        ([*TINY, "-d", "row.jsonl"], 2, "did you mean 'rows.jsonl'?"),
        ([*TINY, "-d", "rows.jsonl", "-t", "genration"], 2, "did you mean 'generation'?"),
        ([*TINY, "-d", "rows.jsonl", "-t", ","], 2, "'tasks' must be a list of at least 1"),
        ([*TINY, "-d", "rows.jsonl", "-t", "harness:"], 2, "unknown evaluation task 'harness:'"),
        ([*TINY, "-d", "rows.jsonl", "-t", "classification"], 2, "missing key 'tasks.0.prompt'"),
        ([*TINY, "-d", "rows.jsonl", "--metrics", "exact_mach"], 2, "unknown metric 'exact_mach'"),
        ([*TINY, "-d", "rows.jsonl", "--metrics", "ece"], 2, "needs the probability of each answer"),
        ([*TINY, "-d", "rows.jsonl", "--metrics", "json_schema"], 2, "metric 'json_schema'"),
        ([*TINY, "-d", "rows.jsonl", "--limit", "0"], 2, "--limit"),
        ([*TINY, "-d", "rows.jsonl", "-o", "rows.jsonl"], 2, "the output folder 'rows.jsonl' is not empty"),
        ([*TINY, "-d", "rows.jsonl", "-o", "rows.jsonl/below"], 4, "nothing can be written"),
        (["runs", "compare", "evals/a"], 2, "one folder cannot be compared"),
        (["runs", "show", "nowhere"], 2, "nowhere"),
        (["runs", "compare", "nowhere", "neither"], 2, "nowhere"),
    ],
)  # fmt: skip
def test_refused_with_what_to_do_and_nothing_left(run, here, words, code, told):
    done = run(*words)
    assert (done.exit_code, told in " ".join(done.output.split())) == (code, True), done.output
    assert "Traceback" not in done.output and left(here) == []


def test_a_metric_of_numbers_needs_numbers(run, here):
    (here / "words.jsonl").write_text('{"prompt": "Who?", "completion": "Nobody."}\n')
    done = run(*TINY, "-d", "words.jsonl", "--metrics", "numeric_answer")
    assert done.exit_code == 3 and "words.jsonl:1" in done.output


def test_tasks_of_the_harness_are_one_block():
    from tunekit.cli.evaluate import _tasks

    assert _tasks("harness:a,perplexity,harness:b", None) == [{"kind": "harness", "tasks": ["a", "b"]},
                                                              {"kind": "perplexity"}]  # fmt: skip
    assert _tasks("harness,harness:a", None) == [{"kind": "harness", "tasks": ["a"]}]


def test_a_family_of_metrics_stands_for_all_of_it():
    from tunekit.cli.evaluate import _tasks

    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    assert _tasks(None, "rouge, exact_match") == [{"kind": "generation", "metrics": [*names, "exact_match"]}]
    assert _tasks("perplexity,questions", "rouge")[1] == {"kind": "questions", "metrics": names}


def test_an_evaluation_does_not_fall_into_a_folder_that_is_not_empty(run, here):
    (here / "out").mkdir()
    (here / "out" / "mine").touch()
    done = run(*TINY, "-d", "rows.jsonl", "-o", "out")
    assert done.exit_code == 2 and "is not empty" in done.output and left(here) == ["out", "out/mine"]


# ---- a judge ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def nonsense():
    """A server that answers everything, and never with a verdict."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer({"data": [{"id": "judge"}]})

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            choice = {"message": {"role": "assistant", "content": "purple"}, "finish_reason": "stop"}
            self.answer({"choices": [choice], "usage": {"completion_tokens": 1}})

        def answer(self, value):
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def judged(url):
    judge = {"url": url, "model": "judge", "retries": 0}
    task = {"kind": "judge", "judge": judge, "prompt": "{prompt}", "max_new_tokens": 4}
    return ["-d", "rows.jsonl", "--set", f"tasks={json.dumps([task])}"]


def test_a_judge_that_is_not_there(run, here):
    done = run(*TINY, *judged("http://127.0.0.1:9/v1"))
    assert done.exit_code == 4 and "127.0.0.1:9" in done.output and left(here) == []


def test_a_judge_that_answers_nonsense(run, here, nonsense):
    done = run(*TINY, *judged(nonsense))
    assert done.exit_code == 3 and "gave no verdict on 4 of 4 rows" in done.output and "purple" in done.output
    assert left(here) == []


# ---- what goes wrong while it runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["-o", "deep/out"]])
def test_a_full_disk_leaves_nothing(run, here, monkeypatch, words):
    from tunekit.exam import job

    def full(folder):
        (folder / "report.html").write_text("half")
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(job, "write_report", full)
    done = run(*TINY, "-d", "rows.jsonl", *words)
    assert done.exit_code == 4 and "No space left" in done.output
    assert [name for name in left(here) if name != "deep"] == []


def test_answers_that_cannot_be_kept_say_what_to_do(run, here, tmp_path):
    """A file stands where the folder would be: so it is refused also to one who may write everywhere."""
    (tmp_path / "home" / "tunekit").mkdir(parents=True)
    (tmp_path / "home" / "tunekit" / "answers").touch()
    done = run(*TINY, "-d", "rows.jsonl")
    assert done.exit_code == 4 and "answers cannot be kept" in done.output and "cache: false" in done.output
    assert left(here) == []
    assert run(*TINY, "-d", "rows.jsonl", "--set", "cache=false", "-q").exit_code == 0


SLOW = """\
import sys, time
from tunekit.exam.answers import Store
keep = Store.keep
def slowly(self, key, answer):
    keep(self, key, answer)
    print("kept", flush=True)
    time.sleep(60)
Store.keep = slowly
from tunekit.cli.app import main
main()
"""


def test_asked_to_end_it_leaves_its_answers_and_no_folder(run, here):
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", SLOW, *TINY, "-d", "rows.jsonl"]
    going = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert going.stdout.readline() == "kept\n", going.stderr.read()
    assert left(here) == ["evals", "evals/tiny"]  # its name is taken
    going.send_signal(signal.SIGTERM)
    _, told = going.communicate(timeout=WAITED)
    assert (going.returncode, "the answers so far are kept" in told) == (143, True), told
    assert left(here) == []
    again = run(*TINY, "-d", "rows.jsonl")
    assert again.exit_code == 0 and "perplexity: 1 of 4 answers are known from before" in again.output


def after_first_answer(monkeypatch, act):
    """Has something happen once, when the first answer has been kept."""
    from tunekit.exam.answers import Store

    keep, met = Store.keep, []

    def kept(self, key, answer):
        keep(self, key, answer)
        if not met:
            met.append(key)
            act()

    monkeypatch.setattr(Store, "keep", kept)


def test_ctrl_c(run, here, monkeypatch):
    after_first_answer(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT))
    done = run(*TINY, "-d", "rows.jsonl")
    assert (done.exit_code, "the answers so far are kept" in done.output) == (130, True), done.output
    assert left(here) == []
    assert "1 of 4 answers are known" in run(*TINY, "-d", "rows.jsonl").output


def test_two_at_once_have_a_folder_each_and_the_answers_in_common(run, monkeypatch):
    """Without a name of its own the one that ends last would find its folder taken, after all its work."""
    inner = []
    after_first_answer(monkeypatch, lambda: inner.append(run(*TINY, "-d", "rows.jsonl", "-q")))
    outer = run(*TINY, "-d", "rows.jsonl", "-q")
    assert (outer.exit_code, inner[0].exit_code) == (0, 0), outer.output + inner[0].output
    records = [json.loads(Path("evals", name, "record.json").read_text()) for name in ("tiny", "tiny-2")]
    assert records[0]["tasks"][0]["tuned"] == records[1]["tasks"][0]["tuned"]


def test_the_store_is_opened_by_many_at_the_same_time(tmp_path):
    from tunekit.exam.answers import opened

    faults, ready = [], threading.Barrier(8)

    def work(number):
        try:
            ready.wait()
            with opened(tmp_path / "new" / "answers.sqlite") as store:
                for n in range(20):
                    store.keep(f"{number}-{n}", {"n": n})
        except BaseException as error:
            faults.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with opened(tmp_path / "new" / "answers.sqlite") as store:
        known = store.known([f"{number}-{n}" for number in range(8) for n in range(20)])
    assert faults == [] and len(known) == 160


def test_kept_answers_are_listed_and_cleared(run, tmp_path):
    kept = tmp_path / "home" / "tunekit" / "answers"
    assert "files of answers" not in run("data", "cache", "list").stdout
    done = run(*TINY, "--data", "rows.jsonl", "--tasks", "perplexity", "--quiet")
    assert done.exit_code == 0, done.output
    (kept / "verdicts.sqlite-wal").write_bytes(b"0" * 100)  # without its database: not one of ours
    assert "1 files of answers of evaluations" in run("data", "cache", "list").stdout
    assert "deleted 0" in run("data", "cache", "clear").stdout and len(list(kept.glob("*.sqlite"))) == 1
    assert "deleted 0" in run("data", "cache", "clear", "--answers", "--older-than", "1").stdout
    assert "deleted 1" in run("data", "cache", "clear", "--answers").stdout
    assert [path.name for path in kept.iterdir()] == ["verdicts.sqlite-wal"]
    assert "answers are known" not in run(*TINY, "--data", "rows.jsonl", "--tasks", "perplexity").output
