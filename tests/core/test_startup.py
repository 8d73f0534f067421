import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import tunekit.cli.app
from tunekit.core.startup import how_threads_wait, waiting
from tunekit.train import launch

SPINS = {"OMP_WAIT_POLICY": "ACTIVE"}
COUNTS = {"GOMP_SPINCOUNT": "1000"}


@pytest.mark.parametrize(
    ("environment", "added"), [({}, {"OMP_WAIT_POLICY": "PASSIVE"}), (SPINS, {}), (COUNTS, {}), (SPINS | COUNTS, {})]
)
def test_what_the_user_says_wins(environment, added):
    assert waiting(environment) == added


@pytest.mark.parametrize(
    ("environment", "asleep", "setting"),
    [
        ({}, False, ""),
        ({"OMP_WAIT_POLICY": "passive"}, True, "OMP_WAIT_POLICY=passive"),
        (SPINS, False, "OMP_WAIT_POLICY=ACTIVE"),
        (COUNTS, False, "GOMP_SPINCOUNT=1000"),
        ({"GOMP_SPINCOUNT": "0"} | SPINS, True, "GOMP_SPINCOUNT=0"),
        (COUNTS | {"OMP_WAIT_POLICY": "PASSIVE"}, False, "GOMP_SPINCOUNT=1000"),
    ],
)
def test_how_threads_wait(environment, asleep, setting):
    assert how_threads_wait(environment) == (asleep, setting)


PROGRAM = """
import json, os, sys
import tunekit.cli.app as program
before = "torch" in sys.modules
program.app = lambda: print(json.dumps([before, os.environ.get("OMP_WAIT_POLICY")]))
program.main()
"""


@pytest.mark.parametrize(("said", "found"), [({}, "PASSIVE"), (SPINS, "ACTIVE")])
def test_the_program_says_it_before_torch_is_there(said, found):
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} | said
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout) == [False, found]


@pytest.mark.parametrize(("said", "found"), [({}, "PASSIVE"), (SPINS, "ACTIVE")])
def test_the_ranks_get_it(monkeypatch, said, found):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    environment = launch._environment(SimpleNamespace(processes=2, threads=1), 0, 1)
    assert environment["OMP_WAIT_POLICY"] == found


def test_torch_s_library_takes_it(monkeypatch):
    """GNU's library tells what it read: without our setting it would spin for 300,000 turns."""
    program = "import tunekit.core.startup as s, sys\nif sys.argv[1] == 'set': s.begin()\nimport torch"
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "VERBOSE")
    turns = {}
    for case in ("set", "unset"):
        command = [sys.executable, "-c", program, case]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        turns[case] = [line.split("'")[1] for line in shown.splitlines() if "GOMP_SPINCOUNT" in line]
    if not turns["unset"]:
        pytest.skip("this torch does not use GNU's OpenMP")
    assert set(turns["set"]) == {"0"}
    assert "0" not in turns["unset"]


def test_the_entry_is_the_one_of_the_console_script():
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="console_scripts", name="tunekit")
    assert entry.load() is tunekit.cli.app.main


GARBAGE = """
import gc, json
from tunekit.core import startup
usual = gc.get_threshold()
startup.begin()
seldom = gc.get_threshold()
kept = [[] for _ in range(10_000)]
startup.load_to_stay("email")
class Node: pass
def ring():
    node = Node()
    node.own = node
ring()
found = gc.collect()
print(json.dumps([usual[0] < seldom[0], gc.get_threshold() == usual, gc.get_freeze_count() >= 10_000, found > 0]))
"""


def test_what_is_loaded_to_stay_is_not_looked_through_again_and_new_garbage_is():
    done = subprocess.run([sys.executable, "-c", GARBAGE], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, True, True, True]


def test_the_garbage_of_a_process_that_did_not_begin_is_left_to_it():
    program = "import gc\nfrom tunekit.core import startup\nstartup.load_to_stay('email')\nprint(gc.get_freeze_count())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 0
