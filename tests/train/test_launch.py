"""Several processes: whatever happens to one of them, all end, soon, and the cause is named."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import launch_for_tests
import pytest

from tunekit.core.errors import DataError, MachineError, Stopped, TunekitError
from tunekit.core.progress import Silent
from tunekit.train import heartbeat as heartbeats
from tunekit.train import launch as launching
from tunekit.train.heartbeat import AwakeClock, Beating, Heartbeat, Watchdog
from tunekit.train.launch import ERROR, OUTCOME, RANKS, STOPPED, launch
from tunekit.train.signals import StopRequest

HERE = Path(__file__).parent
GRACE = launching._GRACE
LEFT = {OUTCOME, ERROR, STOPPED, RANKS}


def until(found, seconds=60.0):
    """Waits for what another process does."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)
    return value


def gone(pid):
    """Whether a process has ended; what is left of it may wait for its parent."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return "\nState:\tZ" in status


class Case:
    """Two ranks and what each of them does."""

    def __init__(self, plan, *does):
        self.plan, self.does, self.folder = plan, does, Path(plan.run_dir)
        self.data, self.plan_path = self.folder / "data", self.folder / "plan.json"
        self.data.mkdir(parents=True)
        (self.data / "does.json").write_text(json.dumps(does))
        plan.save(self.plan_path)
        self.stop = StopRequest()
        self.pool = ThreadPoolExecutor(1)
        self.running = None

    def launch(self, **options):
        return launch(self.plan, self.plan_path, self.data, [], self.stop, worker=launch_for_tests.NAME, **options)

    def begin(self, **options):
        """Starts the launch in a thread; returns the ranks' processes when both have begun."""
        self.running = self.pool.submit(self.launch, **options)
        until(lambda: self.running.done() or all(map(self.pid_file, range(len(self.does)))))
        return self.pids()

    def pid_file(self, rank):
        return (self.data / f"rank-{rank}.pid").exists()

    def pids(self):
        return {path.stem: int(path.read_text()) for path in self.data.glob("*.pid")}

    def error(self, kind, seconds=30.0):
        """What the launch raised; nothing of it is left, neither processes nor files."""
        error = self.running.exception(timeout=seconds)
        assert isinstance(error, kind), error
        self.nothing_is_left()
        return error

    def nothing_is_left(self):
        assert len(self.pids()) >= len(self.does)
        for pid in self.pids().values():
            until(lambda pid=pid: gone(pid), 5)
        assert not LEFT & {path.name for path in self.folder.iterdir()}

    @property
    def log(self):
        return (self.folder / "log.txt").read_text()

    def close(self):
        for pid in self.pids().values():
            if not gone(pid):
                os.killpg(os.getpgid(pid), signal.SIGKILL)
        self.pool.shutdown()


@pytest.fixture
def case(plan_of, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    cases = []

    def build(*does, watchdog=600, grace=0.5):
        monkeypatch.setattr(launching, "_GRACE", grace)
        plan = plan_of(launch__processes=len(does), guards__watchdog=watchdog)
        cases.append(Case(plan, *does))
        return cases[-1]

    yield build
    for made in cases:
        made.close()


# --- a rank dies


def test_a_killed_rank_ends_the_other_and_is_named(case, note):
    """T11. Rank 0 waits in a collective, or has just seen the connection close."""
    two = case("reduces", "reduces", grace=GRACE)
    pids = two.begin()
    before = time.monotonic()
    os.kill(pids["rank-1"], signal.SIGKILL)
    error = two.error(MachineError)
    note(f"a rank was killed; the run had ended after {time.monotonic() - before:.1f} s")
    assert time.monotonic() - before < 10
    assert error.args == ("rank 1 was killed by SIGKILL",) and error.exit_code == 4
    assert error.problems[0].where == str(two.folder / "log.txt") and "memory" in error.fix


@pytest.mark.slow
def test_a_rank_that_answers_no_signal_is_killed(case):
    two = case("beats", "beats", grace=GRACE)
    pids = two.begin()
    before = time.monotonic()
    os.kill(pids["rank-0"], signal.SIGSTOP)  # SIGTERM waits for SIGCONT
    os.kill(pids["rank-1"], signal.SIGKILL)
    assert two.error(MachineError).args == ("rank 1 was killed by SIGKILL",)
    assert time.monotonic() - before < 10


@pytest.mark.slow
def test_the_error_of_the_first_rank_is_raised_not_the_noise_of_the_others(case):
    two = case("joins", "refuses")
    two.begin()
    error = two.error(DataError)
    assert [(p.what, p.where, p.fix) for p in error.problems] == [("row 7 is bad", "rows.jsonl:7", "mend it")]


@pytest.mark.slow
def test_an_exception_is_told_by_its_first_line_and_the_log_has_the_rest(case):
    """Its rank's own exit hangs: a collective that the other never joins is pending."""
    two = case("joins", "crashes")
    two.begin()
    error = two.error(TunekitError)
    assert (error.args, error.exit_code) == (("rank 1 failed: RuntimeError: tensor on fire",), 1)
    assert "and more" in two.log


@pytest.mark.slow
def test_a_rank_that_leaves_without_a_word(case):
    two = case("crashes_after", "leaves", grace=GRACE)
    two.begin()
    assert two.error(MachineError).args == ("rank 1 ended with code 3 and left no error",)
    assert "Connection closed by peer" in two.log


@pytest.mark.slow
def test_memory_is_the_machines(case):
    two = case("beats", "has_no_memory")
    two.begin()
    error = two.error(MachineError)
    assert (error.args, error.exit_code) == (("rank 1 failed: MemoryError",), 4)


@pytest.mark.slow
def test_a_killed_rank_is_named_also_when_the_other_ends_first(case):
    """The kernel may close a dying process's connections long before it can be waited for."""
    two = case("crashes_first", "is_killed_late", grace=GRACE)
    two.begin()
    assert two.error(MachineError).args == ("rank 1 was killed by SIGKILL",)


@pytest.mark.slow
def test_the_children_of_a_killed_rank_are_killed(case):
    two = case("has_a_child", "has_a_child")
    pids = two.begin()
    assert not gone(pids["rank-1-child"])
    os.kill(pids["rank-1"], signal.SIGKILL)
    two.error(MachineError)
    assert len(two.pids()) == 4  # all of them are gone


# --- a rank hangs


@pytest.mark.slow
def test_a_stopped_rank_is_named_with_its_state(case):
    """T12: rank 0 is stuck in the collective, and says where."""
    two = case("reduces", "reduces", watchdog=2)
    pids = two.begin()
    os.kill(pids["rank-1"], signal.SIGSTOP)
    error = two.error(MachineError)
    assert error.args[0].startswith(f"rank 1 (process {pids['rank-1']}) has been stopped (state T) since ")
    first, other = error.problems
    assert first.where == str(two.folder / "log.txt")
    assert other.where == f"rank 0 (process {pids['rank-0']})" and other.what.startswith("last: step ")
    stacks = two.log.split("stacks of ")
    assert stacks[-2].startswith("rank 0") and "in all_reduce" in stacks[-2] and "in reduces" in stacks[-2]
    assert stacks[-1].startswith("rank 1") and "did not answer (state T (stopped))" in stacks[-1]


def test_ranks_that_wait_for_each_other_are_a_hang(case):
    two = case("waits", "waits", watchdog=2)
    pids = two.begin()
    error = two.error(MachineError)
    assert error.args == ("no rank has made progress for 2 s, though all are alive",)
    assert [p.where for p in error.problems[1:]] == [f"rank {n} (process {pids[f'rank-{n}']})" for n in range(2)]
    assert all(p.what.startswith("last: waiting for Godot, at ") for p in error.problems[1:])
    assert two.log.count("in waits") == 2


@pytest.mark.slow
def test_a_rank_in_which_python_cannot_run_is_named_and_its_stacks_are_there(case):
    two = case("beats", "holds_the_gil", watchdog=2)
    pids = two.begin()
    error = two.error(MachineError)
    assert error.args[0].startswith(f"rank 1 (process {pids['rank-1']}) has given no sign of life since ")
    assert "(state S (sleeping)); last: begun, at " in error.args[0]
    assert "in holds_the_gil" in two.log and "in beats" in two.log


# --- the end is asked for


def launcher(two):
    """The launch in a process of its own, its ranks begun."""
    command = [sys.executable, "-m", launch_for_tests.NAME, "launch", str(two.plan_path), str(two.data)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    until(lambda: process.poll() is not None or all(map(two.pid_file, range(len(two.does)))))
    return process


@pytest.mark.slow
def test_ranks_do_not_outlive_a_killed_launcher(case):
    two = case("beats", "waits")
    process = launcher(two)
    assert not any(gone(pid) for pid in two.pids().values())
    process.kill()
    process.wait()
    for pid in two.pids().values():
        until(lambda pid=pid: gone(pid), 10)


def test_a_rank_whose_launcher_is_gone_does_not_start(case):
    two = case("beats")
    command = [sys.executable, "-m", launch_for_tests.NAME, str(two.plan_path), str(two.data), "--launcher", "1"]
    if os.getpid() == 1:
        pytest.skip("this process is number 1")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "the process that this one works for is gone" in done.stderr
    assert not two.pids()


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_handed_on_once_and_what_rank_0_tells_comes_back(case, signum, code):
    two = case("stops", "stops")
    process = launcher(two)
    process.send_signal(signum)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "stopped: a checkpoint of step 7\n")
    two.nothing_is_left()
    for rank in range(2):
        assert json.loads((two.data / f"rank-{rank}.signals").read_text()) == [signal.SIGTERM]


@pytest.mark.slow
def test_a_second_ctrl_c_ends_everything_at_once(case):
    two = case("beats", "waits")
    process = launcher(two)
    process.send_signal(signal.SIGINT)
    # noted: from now on the signal has the system's own effect
    until(lambda: not _caught(process.pid, signal.SIGINT))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == -signal.SIGINT
    for pid in two.pids().values():
        until(lambda pid=pid: gone(pid), 10)


def _caught(pid, signum):
    line = next(s for s in Path(f"/proc/{pid}/status").read_text().splitlines() if s.startswith("SigCgt:"))
    return int(line.split()[1], 16) >> (signum - 1) & 1


@pytest.mark.slow
def test_a_run_that_finishes_though_asked_to_stop_is_finished(case):
    two = case("finishes_though_asked", "finishes_though_asked")
    two.begin()
    two.stop.signum = signal.SIGTERM
    assert two.running.result(timeout=30).training == {"steps": 5}
    two.nothing_is_left()


@pytest.mark.slow
def test_a_rank_that_somebody_else_asked_to_stop_ends_all(case):
    two = case("stops", "is_asked_by_another")
    two.begin()
    stopped = two.error(Stopped)
    assert (stopped.signum, stopped.told) == (signal.SIGTERM, "a checkpoint of step 7")


# --- what ranks are given


@pytest.mark.slow
def test_ranks_meet_as_the_libraries_expect_and_old_leavings_do_not_count(case, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")  # rank 0 would wait for a store that nobody opens
    two = case("says_where_it_is", "says_where_it_is")
    (two.folder / RANKS).mkdir()
    (two.folder / RANKS / "rank-1.failed").write_text("{}")
    for name in (ERROR, OUTCOME, STOPPED):
        (two.folder / name).write_text("{}")
    assert two.launch(checkpoint=tmp_path).model == {
        "type": "DistributedType.MULTI_CPU", "processes": 2, "sum": 2.0, "rank": 0, "local": 0, "backend": "gloo",
        "threads": 1, "session": True, "stray": False, "checkpoint": str(tmp_path),
    }  # fmt: skip
    assert not LEFT & {path.name for path in two.folder.iterdir()}


# --- real runs

RECIPE = """\
method: sft
model: {{name: "builtin:random?layers=2&hidden=32&heads=2"}}
data: {{train: [{{path: "{train}"}}], max_length: 128}}
train: {{max_steps: 100000, batch_size: 4, log_every: 1, threads: 1, save_every: never}}
eval: {{baseline: false}}
"""


@pytest.fixture
def training(tmp_path, talks):
    """A run of two ranks from the command line, once both train; its folder and the ranks' processes."""
    folder = tmp_path / "run"
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(train=talks))
    command = [sys.executable, "-m", "tunekit", "sft", "recipe.yaml", "-n", "2", "-o", str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "--quiet"], cwd=tmp_path, text=True, **pipes) as process:

        def steps():
            beats = [folder / RANKS / f"rank-{rank}" for rank in range(2)]
            texts = [path.read_text() if path.exists() else "" for path in beats]
            assert process.poll() is None, process.communicate()
            return all('"training, step' in text for text in texts) and texts

        pids = [json.loads(text)["pid"] for text in until(steps, 180)]
        yield SimpleNamespace(process=process, folder=folder, pids=pids)
        process.kill()
    for pid in pids:
        until(lambda pid=pid: gone(pid), 10)


@pytest.mark.slow
def test_a_killed_rank_of_a_real_run(training):
    before = time.monotonic()
    os.kill(training.pids[1], signal.SIGKILL)
    _, shown = training.process.communicate(timeout=60)
    assert time.monotonic() - before < 10
    assert training.process.returncode == 4 and "rank 1 was killed by SIGKILL" in shown
    record = json.loads((training.folder / "record.json").read_text())
    assert (record["status"], record["exit_code"]) == ("failed", 4) and "rank 1 was killed" in json.dumps(record)
    assert all(gone(pid) for pid in training.pids)
    assert not LEFT & {path.name for path in training.folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_real_run_is_asked_to_stop(training, signum, code):
    training.process.send_signal(signum)
    _, shown = training.process.communicate(timeout=60)
    assert training.process.returncode == code, shown
    record = json.loads((training.folder / "record.json").read_text())
    assert (record["status"], record["exit_code"]) == ("stopped", code)
    assert all(gone(pid) for pid in training.pids)
    assert not (training.folder / "model").exists()


@pytest.mark.slow
def test_the_ranks_of_a_real_run_do_not_outlive_it(training):
    training.process.kill()
    for pid in training.pids:
        until(lambda pid=pid: gone(pid), 10)


# --- the heartbeat


def test_a_heartbeat_tells_its_process_and_its_last_progress(tmp_path):
    path = tmp_path / "rank-0"
    heart = Heartbeat(path, every=0.02)
    told = until(lambda: path.exists() and path.read_text() and json.loads(path.read_text()))
    assert told["pid"] == os.getpid() and told["what"] == "starting"
    heart.progress("x" * 1000)
    until(lambda: "xxx" in path.read_text())
    assert path.stat().st_size < 300
    before = path.stat().st_mtime_ns
    until(lambda: path.stat().st_mtime_ns > before)  # alive without progress
    heart.close()
    assert heart.failure is None


def test_a_heartbeat_that_cannot_be_written_warns_once_and_goes_on(tmp_path, caplog):
    folder = tmp_path / "ranks"
    with caplog.at_level(logging.WARNING):
        heart = Heartbeat(folder / "rank-0", every=0.01)
        until(lambda: heart.failure)
        first = heart.failure
        until(lambda: heart.failure is not first)
        heart.progress("step 1")
        folder.mkdir()
        until(lambda: (folder / "rank-0").exists())
        heart.close()
    assert len(caplog.records) == 1 and "rank-0" in caplog.text


def test_everything_shown_is_progress():
    said = []
    screen = Beating(Silent(), SimpleNamespace(progress=said.append))
    screen.say("a")
    screen.warn("b")
    screen.metrics({"step": 4, "loss": 1.0})
    with screen.step("saving", 2, "files") as step:
        step.advance()
        step.advance(2)
        step.note("c")
    assert said == [
        "a", "b", "step 4 is logged", "saving", "saving, 1 done", "saving, 3 done", "saving", "saving: done",
    ]  # fmt: skip


@pytest.fixture
def dog(tmp_path, monkeypatch):
    """A watchdog of two ranks that waits 10 s, on a clock set by hand, and what a rank does: `touch`, or write."""
    monkeypatch.setattr(Watchdog, "_dump", lambda self, living: None)  # this process stands for both ranks
    folder = tmp_path / "ranks"
    folder.mkdir()
    watchdog = Watchdog(folder, tmp_path / "log.txt", limit=10)
    clock = SimpleNamespace(seconds=0.0)
    clock.now = lambda: clock.seconds
    watchdog._clock = clock
    watches = [watchdog.watch(rank, os.getpid()) for rank in range(2)]

    def beat(rank, text=None):
        if text is not None:
            watches[rank].path.write_text(text)
        beat.count += 1
        os.utime(watches[rank].path, ns=(0, beat.count))

    def look(now):
        clock.seconds = now
        error = watchdog.look(watches)
        return error and error.args[0]

    beat.count = 0
    return SimpleNamespace(beat=beat, look=look, folder=folder, path=watches[0].path)


def at(what):
    return json.dumps({"pid": 1, "what": what, "at": 0.0})


def test_one_rank_may_work_while_the_other_waits(dog):
    for now in range(2, 60, 2):
        dog.beat(0, at(f"evaluating, {now} done"))
        dog.beat(1, at("waiting"))
        assert dog.look(now) is None


def test_life_is_not_progress(dog):
    for rank in range(2):
        dog.beat(rank, at("waiting"))
    found = []
    for now in range(2, 16, 2):
        dog.beat(0)
        dog.beat(1)
        found.append(dog.look(now))
    assert found == [None] * 6 + ["no rank has made progress for 10 s, though all are alive"]


def test_a_rank_may_take_a_minute_to_begin(dog):
    dog.beat(0, at("step 1"))
    for now in range(2, 62, 2):
        dog.beat(0, at(f"step {now}"))
        assert dog.look(now) is None
    dog.beat(0)
    assert dog.look(62).startswith(f"rank 1 (process {os.getpid()}) has given no sign of life since ")


@pytest.mark.parametrize("text", ["", '{"pid": 1, "wh', "[]"])
def test_a_heartbeat_that_cannot_be_read_condemns_nobody(dog, text):
    """On a full disk the file is emptied and cannot be filled again; its time is still told."""
    for rank in range(2):
        dog.beat(rank, at("step 1"))
    dog.look(1)
    for now in range(2, 60, 2):
        dog.beat(0, text)
        dog.beat(1)
        assert dog.look(now) is None


def test_a_folder_that_takes_no_heartbeats_condemns_nobody(dog):
    for rank in range(2):
        dog.beat(rank, at("step 1"))
    dog.look(1)
    for path in dog.folder.iterdir():
        path.unlink()
    dog.folder.rmdir()
    for now in range(2, 60, 2):
        assert dog.look(now) is None


def test_the_clock_stands_still_while_the_launcher_does(monkeypatch):
    """Ctrl-Z, a machine that sleeps, a frozen container: the ranks may not have run either."""
    real = [100.0]
    monkeypatch.setattr(heartbeats.time, "monotonic", lambda: real[0])
    clock = AwakeClock()
    real[0] += 1.5
    assert clock.now() == 1.5
    real[0] += 3600
    assert clock.now() == 6.5
