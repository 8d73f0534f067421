"""An adapter as a source: a merge that is there is taken only if it is this adapter's own; a new one asks for room."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tunekit.compress.merge import Request, merge
from tunekit.compress.scratch import scratch
from tunekit.compress.source import opened
from tunekit.core.errors import MachineError
from tunekit.core.progress import Silent

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from forked_for_tests import small_disk

sys.path.pop(0)
HOLD = """\
import sys
from tunekit.compress.scratch import scratch
with scratch("proof") as place:
    print(place, flush=True)
    sys.stdin.readline()
"""


class Told(Silent):
    def __init__(self):
        self.said, self.warned = [], []

    def say(self, text):
        self.said.append(text)

    def warn(self, text):
        self.warned.append(text)


@pytest.fixture(scope="module")
def adapters(base_of, adapter_of):
    """Two of one base."""
    from peft import LoraConfig

    config = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": "all-linear"}
    return [adapter_of(base_of(), LoraConfig(**config), move=0.3, seed=seed)[0] for seed in (2, 3)]


@pytest.fixture
def adapter(adapters, tmp_path):
    return Path(shutil.copytree(adapters[0], tmp_path / "adapter"))


def taken(adapter, tmp_path):
    """Whether the merge that lies there is taken; and what was warned of."""
    screen = Told()
    with opened(str(adapter), None, screen, tmp_path / "small") as source:
        there = source.folder == adapter / "merged"
        assert there or source.folder.parent.name.startswith(".small.staging-")
    assert len(screen.said) == 1 and ("is taken" in screen.said[0]) == there
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    return there, screen.warned


def test_a_merge_that_is_there_is_not_made_again(adapter, rows, here, tmp_path):
    merge(Request(adapter, adapter / "merged", rows=rows), Silent())
    assert taken(adapter, tmp_path) == (True, [])


def test_without_one_it_is_made_beside_the_target(adapter, here, tmp_path):
    assert taken(adapter, tmp_path) == (False, [])


def test_that_of_another_type_is_not_taken(adapter, rows, here, tmp_path):
    merge(Request(adapter, adapter / "merged", "bfloat16", rows=rows), Silent())
    assert taken(adapter, tmp_path) == (False, [])


def test_that_of_another_adapter_is_not_taken(adapter, adapters, rows, here, tmp_path):
    merge(Request(adapters[1], adapter / "merged", rows=rows), Silent())
    assert taken(adapter, tmp_path) == (False, [])


def test_that_of_another_base_is_not_taken(adapter, adapter_of, base_of, rows, here, tmp_path):
    from peft import LoraConfig

    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    other, _ = adapter_of(base_of(seed=7), config, move=0.3)
    merge(Request(other, adapter / "merged", rows=rows), Silent())
    assert taken(adapter, tmp_path) == (False, [])


def test_a_damaged_one_is_told_and_not_taken(adapter, rows, here, tmp_path):
    merge(Request(adapter, adapter / "merged", rows=rows), Silent())
    path = adapter / "merged" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    there, warned = taken(adapter, tmp_path)
    assert not there and len(warned) == 1 and "not as it was saved" in warned[0]


def test_without_room_nothing_is_begun(adapter, here, tmp_path):
    with small_disk(tmp_path / "disk", "size=100k") as disk:
        with pytest.raises(MachineError, match=r"no room for the merged model: .* needed, .* free") as raised:
            merge(Request(adapter, disk / "merged"), Silent())
        assert "--output" in raised.value.fix and list(disk.iterdir()) == []


def test_what_a_killed_program_left_in_the_temporary_directory_goes_with_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    command = [sys.executable, "-c", HOLD]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    left = Path(process.stdout.readline().strip())
    with scratch("proof"):
        assert left.exists(), "it is in use"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert left.exists(), "the fault that is guarded against"
    with scratch("proof") as place:
        assert [path.name for path in tmp_path.iterdir()] == [place.name]
    assert list(tmp_path.iterdir()) == []
