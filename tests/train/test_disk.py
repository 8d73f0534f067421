"""Disk: what a run will write, whether there is room, and what a full disk looks like, on disks that are full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from forked_for_tests import forked, small_disk
from safetensors.torch import save_file

from tunekit.core.errors import MachineError
from tunekit.train.disk import (
    SMALL_FILES,
    checkpoint_bytes,
    free_bytes,
    full_disk_error,
    largest_file_bytes,
    needed_bytes,
    plain_size,
    require_space,
)

MODEL = "builtin:random?layers=2&hidden=128&heads=2"
LORA = {"kind": "lora", "r": 64}
NEEDED = 8 * 2**20


@pytest.mark.parametrize(
    ("adapter", "optimizer"), [(None, "adamw"), (None, "muon"), (None, "adafactor"), (LORA, "adamw"), (LORA, "sgd")]
)
def test_a_checkpoint_is_as_large_as_estimated(adapter, optimizer, plan_of, session_of, note):
    plan = plan_of(model__name=MODEL, adapter=adapter, train__optimizer=optimizer, train__save_every=1)
    session, trainer = session_of(plan)
    session._train(trainer)
    folder = Path(plan.run_dir) / "checkpoints" / "step-000001"
    real = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    estimate = checkpoint_bytes(trainer.model, plan)
    note(f"{optimizer}, {'lora' if adapter else 'full'}: estimated {estimate:,}, really {sum(real.values()):,} bytes")
    assert estimate - SMALL_FILES <= sum(real.values()) <= estimate
    assert largest_file_bytes(trainer.model, plan) == pytest.approx(max(real.values()), rel=0.02)


def test_the_need_of_a_run_by_hand(plan_of):
    """A layer of 1,000,000 float32 weights under AdamW: 4 MB, states of 8,000,004 bytes, small files of 1 MB."""
    model = torch.nn.Linear(1000, 1000, bias=False)
    one, final = 13_000_004, 5_000_000
    for sets, count in (
        ({"train__keep_checkpoints": 2, "train__save_every": 5}, 3),
        ({"train__keep_checkpoints": 1}, 2),
        ({"train__keep_checkpoints": 2, "train__keep_best": True, "data__eval": {"count": 4}, "eval__every": 1}, 4),
        ({"train__save_every": "never"}, 0),
    ):
        plan = plan_of(**sets)
        assert checkpoint_bytes(model, plan) == one
        assert needed_bytes(model, plan) == int((count * one + final) * 1.1)
        assert needed_bytes(model, plan, existing=2 * one) == max(0, int((count * one + final) * 1.1) - 2 * one)
        assert largest_file_bytes(model, plan) == (8_000_004 if count else 4_000_000)


def test_too_little_space_is_refused_with_the_numbers(tmp_path):
    place = tmp_path / "not" / "there" / "yet"
    needed = free_bytes(tmp_path) + 10**12
    with pytest.raises(MachineError) as caught:
        require_space(place, needed, "checkpoints and model")
    problem = caught.value.problems[0]
    assert caught.value.exit_code == 4 and problem.where == str(place)
    assert f"({needed:,} bytes) needed" in problem.what and problem.what.endswith("bytes) free")
    for word in ("free space", "train.keep_checkpoints", "output.dir"):
        assert word in problem.fix
    require_space(place, 1000, "checkpoints and model")
    assert not (tmp_path / "not").exists()


def test_a_limit_of_file_sizes_is_noticed_before(tmp_path):
    require_space(tmp_path, 10**6, "a checkpoint", largest=10**6)
    kind, name, code, what, _, fix = forked(
        lambda: require_space(tmp_path, 10**6, "a checkpoint", largest=10**6), file_limit=4096
    )
    assert (kind, name, code) == ("error", "MachineError", 4)
    assert "1.0 MB (1,000,000 bytes)" in what and "4.1 kB (4,096 bytes)" in what and "ulimit -f" in fix


def test_sizes_in_words():
    assert plain_size(1_234_567_890) == "1.2 GB (1,234,567,890 bytes)"
    assert plain_size(2_500_000) == "2.5 MB (2,500,000 bytes)"
    assert plain_size(0) == "0 bytes"


def safetensors(folder):
    save_file({"a": torch.ones(1 << 20)}, folder / "a.safetensors")


def torch_to_path(folder):
    torch.save({"a": torch.ones(1 << 20)}, folder / "a.pt")


def torch_to_file(folder):
    with (folder / "b.pt").open("wb") as file:
        torch.save({"a": torch.ones(1 << 20)}, file)


def plainly(folder):
    with (folder / "c").open("wb") as file:
        file.write(b"x" * (4 << 20))
        file.flush()
        os.fsync(file.fileno())


def explained(write, folder):
    """What a failed write looks like, and what is made of it."""
    try:
        write(folder)
    except BaseException as error:  # noqa: BLE001 (whatever the library raises)
        found = full_disk_error(error, folder, NEEDED)
        return f"{type(error).__name__}: {error}", found and (found.exit_code, found.problems[0].what, found.fix)
    return "written", None


WRITES = [safetensors, torch_to_path, torch_to_file, plainly]


@pytest.mark.parametrize("write", WRITES)
def test_a_file_that_grows_too_large_is_recognised(write, tmp_path, note):
    raw, found = forked(lambda: explained(write, tmp_path), file_limit=1 << 20)
    note(f"{raw[:90]} -> {found}")
    assert found is not None, raw
    code, what, fix = found
    assert code == 4 and "the limit of file sizes (1.0 MB (1,048,576 bytes)) is reached" in what and "ulimit" in fix
    assert "needed 8.4 MB (8,388,608 bytes), free" in what


@pytest.mark.parametrize("write", WRITES)
def test_a_full_disk_is_recognised(write, tmp_path, note):
    with small_disk(tmp_path / "disk") as disk:
        raw, found = explained(write, disk)
        note(f"{raw[:90]} -> {found}")
        assert found is not None, raw
        code, what, fix = found
        assert code == 4 and what.startswith("the disk is full: needed 8.4 MB (8,388,608 bytes), free ")
        assert "free space" in fix


def test_it_is_found_behind_other_errors(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path))
    outer = RuntimeError("saving failed")
    outer.__cause__ = full
    hidden = ValueError("while handling it")
    hidden.__context__ = outer
    full.__context__ = hidden  # a circle
    for error in (full, outer, hidden, OSError(errno.EDQUOT, "Disk quota exceeded")):
        assert "the disk is full" in str(full_disk_error(error, tmp_path, 1000))


def test_other_errors_are_left_alone(tmp_path):
    for write in (
        lambda folder: torch.save({}, folder / "missing" / "a.pt"),
        lambda folder: save_file({}, folder / "missing" / "a.safetensors"),
        lambda folder: (folder / "missing" / "a").write_text("a"),
        lambda folder: save_file({"a": torch.ones(2, 2).t()}, folder / "a"),  # not contiguous
        lambda folder: torch.ones(3) @ torch.ones(4),
    ):
        raw, found = explained(write, tmp_path)
        assert raw != "written" and found is None, raw
    writer = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    assert full_disk_error(writer, tmp_path, 1000) is None  # there is room: it was something else
    assert full_disk_error(writer, tmp_path, free_bytes(tmp_path) + 10**12) is not None
