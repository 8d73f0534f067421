"""Programs that a model wrote: what holds them, and pass@k."""

from __future__ import annotations

import itertools
import os
import random
import time
from pathlib import Path

import pytest

from tunekit.core.errors import UserError
from tunekit.evaluate import sandbox
from tunekit.evaluate.scoring import check, score

QUICK = sandbox.Limits(seconds=2, memory_mib=256, file_mib=1)


def run(program, limits=QUICK):
    return sandbox.run_one(program, limits)


@pytest.mark.parametrize("program", ["", "x = 1\nassert x == 1", "é = 'ü好'\nassert len(é) == 2", "print('a' * 10**7)"])
def test_a_program_that_comes_to_its_end_has_passed(program):
    assert run(program, sandbox.Limits()) == sandbox.Outcome(True)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("x = '''", "SyntaxError"),
        ("raise SystemExit", "before its last line"),
        ("import os; os._exit(0)", "before its last line"),
        ("import sys; sys.exit(3)", "code 3"),
        ("while True: pass", "stopped after 2 s"),
        ("import time; time.sleep(60)", "stopped after 2 s"),
        ("x = 'a' * (1 << 30)", "MemoryError"),
        ("open('big', 'wb').write(b'a' * (2 << 20))", "File too large"),
        ("import numpy", "No module named 'numpy'"),
        ("import ctypes; ctypes.string_at(0)", "code 139"),
        ("x = '\ud800'", "SyntaxError"),
    ],
)
def test_a_program_that_does_not_has_failed(program, why):
    started = time.monotonic()
    outcome = run(program)
    assert not outcome.passed and why in outcome.why
    assert time.monotonic() - started < 20


def test_nothing_of_the_environment_or_the_folder_is_there_or_stays(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    tells = "import os\nraise SystemExit(' '.join([os.getcwd(), *os.listdir(), *sorted(os.environ)]))"
    folder, *rest = run(tells).why.split(" ")
    assert set(rest) <= {"program.py", "errors", "LC_CTYPE"}
    assert Path(folder) != Path.cwd() and not Path(folder).exists()


def test_what_a_program_started_is_killed(tmp_path):
    sign = tmp_path / "alive"
    late = f"import time; time.sleep(3); open({str(sign)!r}, 'w')"
    program = f"import os\nif os.fork() == 0:\n    {late}\n    os._exit(0)\nimport time; time.sleep(60)"
    assert not run(program, sandbox.Limits(seconds=1)).passed
    time.sleep(3.5)
    assert not sign.exists()


def test_there_is_no_network_where_the_kernel_allows_to_take_it():
    import ctypes

    kernel = ctypes.CDLL(None)
    pid = os.fork()
    if pid == 0:
        os._exit(any(kernel.unshare(kind | 0x40000000) == 0 for kind in (0x10000000, 0)))
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
        pytest.skip("the kernel allows no namespace of the network here")
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()  # it can be reached from here
        assert "Network is unreachable" in run(f"import socket; socket.create_connection(('127.0.0.1', {port}))").why


def test_outcomes_keep_their_order():
    programs = ["import time; time.sleep(0.5)", "assert 0", "", "assert 0"]
    assert [outcome.passed for outcome in sandbox.run_all(programs, QUICK, 4)] == [True, False, True, False]


def test_programs_run_only_when_allowed():
    for act in (lambda: check("pass_at_k", {}, [("",)]), lambda: score("pass_at_k", {}, ["open('x', 'w')"], [("",)])):
        with pytest.raises(UserError, match="runs Python programs that the model writes") as caught:
            act()
        assert "allow_code_execution: true" in caught.value.fix


def test_pass_at_k():
    right, wrong = "def double(x):\n    return x * 2", "def double(x):\n    return x + 2"
    tests = ("assert double(2) == 4", "assert double(5) == 10")
    options = {"allow_code_execution": True, "k": 2}
    samples = [(right, wrong, wrong, wrong), (wrong, wrong, "", "```"), (right, right, right, wrong)]
    found = score("pass_at_k", options, ["", "", ""], [tests] * 3, samples=samples)
    # by hand: of the 6 pairs of 4 answers those without a right one are 3, 6 and 0
    assert found.values == pytest.approx((0.5, 0.0, 1.0))
    assert score("pass_at_k", options | {"k": 1}, [right, wrong], [tests] * 2).values == (1.0, 0.0)
    with pytest.raises(UserError, match="needs 5 answers or more to a prompt; there are 4"):
        score("pass_at_k", options | {"k": 5}, [""], [tests], samples=samples[:1])


def test_the_estimate_is_the_mean_over_all_choices_of_k(monkeypatch):
    rng = random.Random(0)
    monkeypatch.setattr(sandbox, "run_all", lambda programs, *_: [sandbox.Outcome("good" in p) for p in programs])
    for k in (1, 2, 4):
        answers = tuple(rng.choice(("good", "bad")) for _ in range(7))
        found = score("pass_at_k", {"allow_code_execution": True, "k": k}, [""], [("",)], samples=[answers])
        chosen = list(itertools.combinations(answers, k))
        assert found.number() == pytest.approx(sum("good" in some for some in chosen) / len(chosen))
