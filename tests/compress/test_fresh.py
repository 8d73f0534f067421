"""Steps in a process of their own: their answers, their errors, and their deaths."""

from __future__ import annotations

import pytest

from tunekit.compress import fresh
from tunekit.core.errors import DataError, MachineError

MODULE = '''
import os
from tunekit.core.errors import DataError, Problem

def work(job):
    if job["end"] == "well":
        kept = bytearray(job["bytes"])
        return {"twice": 2 * job["number"], "kept": len(kept)}
    if job["end"] == "data":
        raise DataError("first", where="a:1", fix="mend it", problems=[Problem("second", "b:2")])
    if job["end"] == "disk":
        raise OSError(28, "No space left on device")
    os._exit(9)
'''


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "steps.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")


def test_an_answer_comes_with_the_memory_that_it_took():
    answer = fresh.run("steps", {"end": "well", "number": 21, "bytes": 300 << 20}, "doubles")
    assert answer["twice"] == 42
    assert 300 << 20 < answer["peak_memory"] < 2 << 30


def test_an_error_arrives_whole():
    with pytest.raises(DataError) as caught:
        fresh.run("steps", {"end": "data"}, "reads")
    told = [(p.what, p.where, p.fix) for p in caught.value.problems]
    assert told == [("first", "a:1", "mend it"), ("second", "b:2", "")]


def test_a_full_disk_is_the_machines_matter():
    with pytest.raises(MachineError, match="No space left"):
        fresh.run("steps", {"end": "disk"}, "writes")


def test_a_death_is_told():
    with pytest.raises(MachineError, match="the process that writes ended with code 9"):
        fresh.run("steps", {"end": "dies"}, "writes")
