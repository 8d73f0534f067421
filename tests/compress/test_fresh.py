"""Steps in a process of their own: their answers, their errors, and their deaths."""

from __future__ import annotations

import pytest

from tunekit.compress import fresh
from tunekit.compress.proof import NotProvenError
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
    if job["end"] == "proof":
        from tunekit.compress.proof import NotProvenError
        raise NotProvenError("worse")
    os._exit(9)
'''


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "steps.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")


def test_an_answer_comes_with_the_memory_that_it_took():
    """And not with that of the process that asked, which is larger here, as after a training or a merge."""
    held = bytearray(b"x") * (700 << 20)
    small = fresh.run("steps", {"end": "well", "number": 21, "bytes": 1 << 20}, "doubles")
    large = fresh.run("steps", {"end": "well", "number": 21, "bytes": 300 << 20}, "doubles")
    assert small["twice"] == 42 and len(held) == 700 << 20
    assert small["peak_memory"] < 300 << 20 < large["peak_memory"] < 700 << 20
    assert 290 << 20 < large["peak_memory"] - small["peak_memory"] < 310 << 20


def test_a_module_in_the_working_folder_is_none_of_pythons(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "tempfile.py").write_text("raise SystemExit('mine')", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "work")
    assert fresh.run("steps", {"end": "well", "number": 2, "bytes": 1}, "doubles")["twice"] == 4


def test_an_error_of_another_room_keeps_its_kind():
    with pytest.raises(NotProvenError, match="worse"):
        fresh.run("steps", {"end": "proof"}, "proves")


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
