import errno
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console
from runs_for_tests import make_run

from tunekit.core.errors import MachineError, UserError
from tunekit.runs import lock as locks
from tunekit.runs.lock import Holder, RunLock, holder, is_held
from tunekit.runs.table import run_details, runs_grid, runs_table

HOLD = """
import sys
from pathlib import Path
from tunekit.runs.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
# as HOLD, with a forked child (like a data loader's) that keeps the descriptor open until its stdin ends
HOLD_AND_FORK = """
import os, sys
from pathlib import Path
from tunekit.runs.lock import RunLock
with RunLock(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print("held", child, flush=True)
    sys.stdin.read()
    if not child:
        print("child ended", flush=True)
        os._exit(0)
"""
TRY = """
import sys
from pathlib import Path
from tunekit.core.errors import TunekitError
from tunekit.runs.lock import RunLock
try:
    with RunLock(Path(sys.argv[1]), print):
        print("taken")
except TunekitError as error:
    print(error, "|", error.fix)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def owner():
    """Starts processes that take a folder's lock and hold it until their stdin ends; ends them after the test."""
    started = []

    def start(folder, program=HOLD):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline().startswith("held")
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def attempt(folder):
    done = subprocess.run([sys.executable, "-c", TRY, str(folder)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


def killed(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    return process


def leave(folder, content):
    """The lock file of a process that is no more."""
    (folder / ".lock").write_text(content if isinstance(content, str) else json.dumps(content))


def test_a_second_run_is_refused_and_told_who_holds_the_folder(tmp_path, owner):
    first = owner(tmp_path)
    said = json.loads((tmp_path / ".lock").read_text())
    assert said == {"pid": first.pid, "host": socket.gethostname(), "started": said["started"], "command": "tunekit"}
    code, text = attempt(tmp_path)
    assert code == 2
    assert f"process {first.pid} on {socket.gethostname()}, since 20" in text and "output.dir" in text
    with pytest.raises(UserError, match=rf"in use by process {first.pid} on ") as caught, RunLock(tmp_path):
        pytest.fail("two owners")
    assert caught.value.exit_code == 2 and caught.value.problems[0].where == str(tmp_path)
    assert first.poll() is None and json.loads((tmp_path / ".lock").read_text()) == said


def test_the_lock_of_a_killed_run_is_recovered_and_said(tmp_path, owner):
    first = killed(owner(tmp_path))
    assert (tmp_path / ".lock").exists()
    said = []
    with RunLock(tmp_path, said.append) as lock:
        assert said == [f"recovered the lock of process {first.pid}, which ended without releasing it"]
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid() == lock.holder.pid
    assert not (tmp_path / ".lock").exists()


def test_a_run_that_ends_leaves_nothing(tmp_path, owner):
    first = owner(tmp_path)
    first.communicate("")
    assert first.returncode == 0 and list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    said = []
    with RunLock(tmp_path, said.append):
        pass
    assert said == []


def test_the_child_of_a_killed_owner_does_not_keep_the_lock(tmp_path, owner):
    # the child holds the pipe's reading end too: it lives until this process closes its end
    first = killed(owner(tmp_path, HOLD_AND_FORK))
    ready, _, _ = select.select([first.stdout], [], [], 0)
    assert ready == [], "the child should still live, with the lock file open"
    said = []
    with RunLock(tmp_path, said.append):
        assert f"process {first.pid}," in said[0]
    first.stdin.close()
    assert first.stdout.read() == "child ended\n"
    first.stdin = None


def test_a_forked_child_neither_owns_nor_releases_its_parents_lock(tmp_path):
    with RunLock(tmp_path):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                held = is_held(tmp_path)
                try:
                    with RunLock(tmp_path):
                        pass
                except UserError:
                    code = 0 if held else 2
                locks._held[str(tmp_path.resolve())].__exit__()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert attempt(tmp_path)[0] == 2
    assert not (tmp_path / ".lock").exists()


def test_the_same_process_is_refused_too_by_whatever_name(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    refused = []

    def second():
        try:
            RunLock(tmp_path / "link").__enter__()
        except UserError as error:
            refused.append(str(error))

    with RunLock(tmp_path / "run"):
        second()
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert len(refused) == 2 and all(f"process {os.getpid()} on" in text for text in refused)
        assert attempt(tmp_path / "run")[0] == 2  # neither the refusals nor asking dropped the lock
    with RunLock(tmp_path / "link"):
        assert is_held(tmp_path / "run")


def test_a_lock_of_another_host_is_refused_and_left_alone(tmp_path):
    left = {"pid": 77, "host": "elsewhere", "started": "2026-03-01T12:00:00Z", "command": "tunekit"}
    leave(tmp_path, left)
    with pytest.raises(UserError, match="process 77 on elsewhere, since 2026-03-01 12:00 UTC") as caught:
        RunLock(tmp_path).__enter__()
    assert f"delete {tmp_path / '.lock'}" in caught.value.fix
    assert json.loads((tmp_path / ".lock").read_text()) == left
    assert holder(tmp_path) == Holder(77, "elsewhere", "2026-03-01T12:00:00Z")
    (tmp_path / ".lock").unlink()
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize(
    "content",
    ["{", "\x00\x01", "[1, 2]", '{"pid": "x", "host": 3}', '{"pid": true, "host": "h", "started": ""}', "[" * 60_000],
)
def test_a_damaged_lock_file_is_a_stale_one(tmp_path, content):
    leave(tmp_path, content)
    assert not is_held(tmp_path)
    said = []
    with RunLock(tmp_path, said.append):
        assert said == ["recovered the lock of a process that is not known, which ended without releasing it"]
    assert not (tmp_path / ".lock").exists()


def test_an_empty_lock_file_is_a_free_one(tmp_path):
    leave(tmp_path, "")
    said = []
    with RunLock(tmp_path, said.append):
        assert said == []


def test_asking_changes_nothing(tmp_path, owner):
    assert not is_held(tmp_path) and holder(tmp_path) is None
    assert not is_held(tmp_path / "none") and list(tmp_path.iterdir()) == []
    first = owner(tmp_path)
    assert is_held(tmp_path) and holder(tmp_path).pid == first.pid
    (tmp_path / ".lock").write_text("spoilt")  # a holder that cannot be read holds it all the same
    assert is_held(tmp_path) and holder(tmp_path) == Holder(None, "", "")
    assert "in use by another process" in attempt(tmp_path)[1]
    killed(first)
    assert not is_held(tmp_path) and (tmp_path / ".lock").exists()
    with RunLock(tmp_path) as lock:
        assert is_held(tmp_path) and holder(tmp_path) == lock.holder
        assert attempt(tmp_path)[0] == 2
    assert not is_held(tmp_path)


def test_a_file_removed_between_opening_and_locking_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    real, calls = locks.fcntl.lockf, []

    def lockf(descriptor, how):
        if not calls:  # the moment at which the former owner releases, and a third process may come
            (tmp_path / ".lock").unlink()
        calls.append(descriptor)
        return real(descriptor, how)

    monkeypatch.setattr(locks.fcntl, "lockf", lockf)
    with RunLock(tmp_path):
        assert len(calls) == 2
        assert attempt(tmp_path)[0] == 2


def test_another_owners_file_is_not_removed(tmp_path, owner):
    with RunLock(tmp_path):
        (tmp_path / ".lock").unlink()
        other = owner(tmp_path)
    assert holder(tmp_path).pid == other.pid


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_so(tmp_path, monkeypatch, number):
    def lockf(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "lockf", lockf)
    with pytest.raises(MachineError, match="no locks") as caught:
        RunLock(tmp_path).__enter__()
    assert caught.value.exit_code == 4 and caught.value.problems[0].where == str(tmp_path)


def test_what_the_file_system_refuses_goes_up(tmp_path):
    with pytest.raises(FileNotFoundError):
        RunLock(tmp_path / "none").__enter__()
    assert not (tmp_path / "none").exists()
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / ".lock").symlink_to(precious)
    with pytest.raises(OSError):
        RunLock(tmp_path).__enter__()
    assert precious.read_text() == "kept"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder_goes_up(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(PermissionError):
            RunLock(tmp_path).__enter__()
    finally:
        tmp_path.chmod(0o755)


def test_a_failure_on_entering_gives_the_lock_back(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    leave(tmp_path, "{")
    with pytest.raises(OSError, match="No space"):
        RunLock(tmp_path, broken).__enter__()
    assert attempt(tmp_path) == (0, "taken\n")
    with monkeypatch.context() as patch:
        patch.setattr(locks.os, "pwrite", broken)
        with pytest.raises(OSError, match="No space"):
            RunLock(tmp_path).__enter__()
    assert attempt(tmp_path) == (0, "taken\n")


def shown(*parts):
    console = Console(width=80, record=True, force_terminal=False, color_system=None, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.export_text()


def test_a_run_without_an_owner_is_listed_as_interrupted(tmp_path, monkeypatch, owner):
    changes = {"status": "running", "exit_code": None, "finished": None, "evaluation": None, "training": None}
    folder = make_run(tmp_path / "a run", **changes)
    make_run(tmp_path / "done")
    status = {row.name: row.status for row in runs_table(tmp_path)}
    assert status == {"a run": "interrupted", "done": "done"}
    text = shown(runs_grid(runs_table(tmp_path)))
    assert "interrupted" in text and all(len(line) <= 80 for line in text.splitlines())
    console = Console(width=80, force_terminal=True, color_system="standard", file=io.StringIO())
    console.print(runs_grid(runs_table(tmp_path)))
    assert "\x1b[33minterrupted" in console.file.getvalue()  # yellow
    monkeypatch.chdir(tmp_path)
    text = shown(*run_details(Path("a run")))
    assert "interrupted" in text and "tunekit resume 'a run'" in text

    first = owner(folder.path)
    assert {row.name: row.status for row in runs_table(tmp_path)} == {"a run": "running", "done": "done"}
    text = shown(*run_details(folder.path))
    assert "running" in text and "interrupted" not in text and "resume" not in text
    killed(first)
    assert {row.name: row.status for row in runs_table(tmp_path)} == {"a run": "interrupted", "done": "done"}


def test_where_locks_cannot_be_asked_for_the_records_word_stands(tmp_path, monkeypatch):
    make_run(tmp_path / "x", status="running")

    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    leave(tmp_path / "x", "{}")
    assert [row.status for row in runs_table(tmp_path)] == ["interrupted"]
    monkeypatch.setattr(locks.fcntl, "fcntl", no_locks)
    assert [row.status for row in runs_table(tmp_path)] == ["running"]
