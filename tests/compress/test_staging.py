"""Folders that appear whole or not at all; what a killed process left beside them goes, what a living one has stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tunekit.model import save
from tunekit.model.save import beside, staged, sweep, sweep_within

HOLD = """\
import os, sys
from pathlib import Path
from tunekit.model.save import staged
with staged(Path(sys.argv[1])) as place:
    (place / "half").write_text("half")
    print(place.name, flush=True)
    sys.stdin.readline()
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def holder(tmp_path):
    """Another process that is writing the same folder; and the name of the hidden one that it writes in."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "small")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process, process.stdout.readline().strip()
    process.kill()
    process.communicate()


def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(holder, tmp_path):
    process, hidden = holder
    with staged(tmp_path / "small") as place:
        assert names(tmp_path) == sorted([hidden, place.name]) and hidden != place.name
        (place / "whole").write_text("whole")
    assert names(tmp_path) == [hidden, "small"] and (tmp_path / hidden / "half").exists(), "it is being written"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / hidden / "half").exists()
    with staged(tmp_path / "other"):
        assert hidden in names(tmp_path), "it belongs to another target"
    sweep(tmp_path / "small")
    assert names(tmp_path) == ["other", "small"]


def test_a_process_that_ends_well_puts_its_folder_in_place(holder, tmp_path):
    process, hidden = holder
    assert names(tmp_path) == [hidden]
    process.communicate("\n")
    assert process.returncode == 0 and names(tmp_path) == ["small"] and names(tmp_path / "small") == ["half"]
    with pytest.raises(OSError), staged(tmp_path / "small") as place:
        (place / "more").write_text("more")
    assert names(tmp_path) == ["small"] and names(tmp_path / "small") == ["half"]


def test_within_one_process_too(tmp_path):
    with staged(tmp_path / "small") as one, beside(tmp_path / "small") as other:
        assert one.exists() and other.exists() and one != other
    assert names(tmp_path) == ["small"]


def test_a_forked_process_that_lives_on_keeps_the_folder(tmp_path):
    """Such as one that loads data: what it may still be writing into is not taken from under it."""
    reader, writer = os.pipe()
    ready, told = os.pipe()
    parent = os.fork()
    if parent == 0:
        with staged(tmp_path / "small"):
            if os.fork() == 0:
                os.write(told, b"x")
                os.read(reader, 1)
                os._exit(0)
            os.read(ready, 1)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    sweep(tmp_path / "small")
    assert len(names(tmp_path)) == 1
    os.write(writer, b"x")
    for handle in (reader, writer, ready, told):
        os.close(handle)
    for _ in range(500):
        sweep(tmp_path / "small")
        if not names(tmp_path):
            break
        subprocess.run(["sleep", "0.01"], check=True)
    assert names(tmp_path) == []


def test_folders_of_the_users_own_are_not_touched(tmp_path):
    for name in (".small.old_copy", ".small", ".small.staging", ".small2.staging-abcdefgh", "small.staging-abcdefgh"):
        (tmp_path / name).mkdir()
    (tmp_path / ".small.staging-notafolder").write_text("mine")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("mine")
    (tmp_path / ".small.staging-link").symlink_to(tmp_path / "kept")
    before = names(tmp_path)
    sweep(tmp_path / "small")
    assert names(tmp_path) == before and names(tmp_path / "kept") == ["file"]


def test_a_folder_of_several_is_swept_within(holder, tmp_path):
    """Killed among several kinds, a run leaves a hidden folder in the folder of them all."""
    for name in (".nf4.staging-12345678", ".int8.staging-abcdefgh", "int8", ".mine"):
        (tmp_path / name).mkdir()
    sweep_within(tmp_path)
    assert names(tmp_path) == sorted([holder[1], ".mine", "int8"]), "one is still being written"
    sweep_within(tmp_path / "nowhere")


def test_names_with_signs_of_patterns_stand_for_themselves(tmp_path):
    (tmp_path / ".a.staging-12345678").mkdir()
    (tmp_path / ".[a].staging-12345678").mkdir()
    sweep(tmp_path / "[a]")
    assert names(tmp_path) == [".a.staging-12345678"]


def test_where_there_are_no_locks_nothing_is_swept(tmp_path, monkeypatch):
    import errno

    def none(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(save.fcntl, "flock", none)
    (tmp_path / ".small.staging-12345678").mkdir()
    with staged(tmp_path / "small") as place:
        assert place.exists()
    assert names(tmp_path) == [".small.staging-12345678", "small"]


def test_a_folder_that_is_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    """Between a folder's making and its lock another process may take it for the leftover of a dead one."""
    made, real = [], save.tempfile.mkdtemp

    def taken(**how):
        path = real(**how)
        made.append(path)
        if len(made) == 1:
            Path(path).rmdir()
        return path

    monkeypatch.setattr(save.tempfile, "mkdtemp", taken)
    with staged(tmp_path / "small") as place:
        assert len(made) == 2 and str(place) == made[1]

    flock, tries = save.fcntl.flock, []

    def late(handle, how):  # it goes after it was opened
        if not tries:
            Path(made[-1]).rmdir()
        tries.append(handle)
        flock(handle, how)

    monkeypatch.setattr(save.fcntl, "flock", late)
    with staged(tmp_path / "second") as place:
        assert place.exists() and len(tries) == 2
    assert names(tmp_path) == ["second", "small"]
