"""Windows are what the loader of training goes through: every step's rows are those that were answered for it."""

from collections import Counter
from types import SimpleNamespace

import pytest

from tunekit.rl.windows import Windows
from tunekit.train.batches import EpochBatches, EpochLoader

LENGTHS = [3 + n * 7 % 11 for n in range(23)]
SHAPES = {  # micro-batch, world, accumulation
    "one": (4, 1, 1),
    "accumulation": (2, 1, 2),
    "two ranks": (2, 2, 1),
    "two ranks, accumulation": (1, 2, 2),
}
LAYOUTS = [(1, 1), (1, 3), (2, 1), (4, 2), (100, 2)]


def windows_of(shape, window, passes, *, rank=0, rows=23, order="random"):
    micro, world, accumulation = SHAPES[shape]
    args = SimpleNamespace(
        per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation, train_sampling_strategy=order,
        data_seed=5,
    )  # fmt: skip
    accelerator = SimpleNamespace(num_processes=world, process_index=rank)
    return Windows(args, accelerator, LENGTHS[:rows], window, passes)


def loaded(shape, window, passes, epoch, *, rank=0, rows=23, order="random"):
    """What the loader of a rank yields in an epoch: the rows of each micro-batch, fillers as -1."""
    micro, world, accumulation = SHAPES[shape]
    batches = EpochBatches(
        LENGTHS[:rows], global_batch=4, micro_batch=micro, rank=rank, world=world, order=order, seed=5, window=window,
        passes=passes,
    )  # fmt: skip
    assert micro * world * accumulation == 4
    data = [{"input_ids": [n], "index": n} for n in range(rows)]
    loader = EpochLoader(data, batches, collate_fn=lambda rows: [row.get("index", -1) for row in rows])
    loader.set_epoch(epoch)
    found = list(loader)
    assert len(loader) == len(batches) == len(found)
    return found


def steps_of(found, accumulation):
    """As Trainer does: so many micro-batches a step; the last step of an epoch has what is left."""
    return [found[start : start + accumulation] for start in range(0, len(found), accumulation)]


@pytest.mark.parametrize("order", ["random", "sequential", "group_by_length"])
@pytest.mark.parametrize(("window", "passes"), LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_steps_rows_are_in_its_window(shape, window, passes, order):
    micro, world, accumulation = SHAPES[shape]
    windows = windows_of(shape, window, passes, order=order)
    a_pass = -(-23 // 4)
    assert windows.steps == a_pass * passes
    for epoch in range(3):
        ranks = [
            steps_of(loaded(shape, window, passes, epoch, rank=rank, order=order), accumulation)
            for rank in range(world)
        ]
        assert {len(steps) for steps in ranks} == {windows.steps}
        seen = {}
        for step in range(windows.steps):
            number = epoch * windows.steps + step
            found = windows.at(number)
            assert found.number[0] == epoch and number < found.ends
            assert number >= found.ends - found.steps
            batches = [batch for steps in ranks for batch in steps[step]]
            assert {len(batch) for batch in batches} <= {micro} or passes == window == 1
            rows = [row for batch in batches for row in batch if row != EpochBatches.EMPTY]
            assert 0 < len(rows) <= 4 and len(set(rows)) == len(rows)
            assert set(rows) <= set(found.rows)
            seen.setdefault(found, Counter()).update(rows)
        for found, counts in seen.items():  # a window's rows, each as often as there are passes
            assert counts == dict.fromkeys(found.rows, passes)
            assert found.steps <= window * passes
        assert Counter(row for found in seen for row in found.rows) == dict.fromkeys(range(23), 1)
        assert [found.number for found in seen] == [(epoch, at) for at in range(len(seen))]
        assert len(seen) == -(-a_pass // window)


@pytest.mark.parametrize("passes", [2, 3])
def test_each_pass_sees_each_row_once_and_in_another_order(passes):
    """Two batches a window: 23 rows are 6 batches."""
    steps = [batch for (batch,) in steps_of(loaded("one", 2, passes, 0), 1)]
    for start in range(0, len(steps), 2 * passes):
        turns = [steps[at : at + 2] for at in range(start, start + 2 * passes, 2)]
        rows = [sorted(row for batch in turn for row in batch if row >= 0) for turn in turns]
        assert all(found == rows[0] and len(set(found)) == len(found) for found in rows)
        orders = {tuple(tuple(sorted(batch)) for batch in turn) for turn in turns}
        assert len(orders) == passes


@pytest.mark.parametrize("shape", SHAPES)
def test_windows_do_not_depend_on_ranks_and_micro_batches(shape):
    one, other = windows_of("one", 2, 3), windows_of(shape, 2, 3, rank=SHAPES[shape][1] - 1)
    assert [one.at(step) for step in range(2 * one.steps)] == [other.at(step) for step in range(2 * other.steps)]


def test_windows_can_be_asked_in_any_order():
    """A run that goes on from a checkpoint begins in the middle; a rollback goes back."""
    fresh = windows_of("one", 2, 2)
    forth = [fresh.at(step) for step in range(3 * fresh.steps)]
    back = [fresh.at(step) for step in reversed(range(3 * fresh.steps))]
    assert forth == back[::-1]
    assert windows_of("one", 2, 2).at(2 * fresh.steps + 5) == forth[2 * fresh.steps + 5]


@pytest.mark.parametrize("rows", [1, 3, 4, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_few_rows(shape, rows):
    """Fewer prompts than ranks and micro-batches: fillers, and each row once a pass."""
    accumulation, world = SHAPES[shape][2], SHAPES[shape][1]
    ranks = [steps_of(loaded(shape, 2, 2, 0, rank=rank, rows=rows), accumulation) for rank in range(world)]
    windows = windows_of(shape, 2, 2, rows=rows)
    assert {len(steps) for steps in ranks} == {windows.steps}
    counts = Counter(row for steps in ranks for step in steps for batch in step for row in batch if row >= 0)
    assert counts == dict.fromkeys(range(rows), 2)
