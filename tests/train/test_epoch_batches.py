"""The epoch's plan: every row once, the same global batches on any number of ranks, and fillers that weigh nothing."""

from __future__ import annotations

from collections import Counter

import pytest

from tunekit.train.batches import POOL, EpochBatches, EpochLoader

GEOMETRIES = [(batch, world) for world in (1, 2, 4) for batch in (4, 8, 12) if batch % world == 0]
ORDERS = ("sequential", "random", "group_by_length")


def batches(count, batch, world=1, rank=0, micro=1, order="random", seed=3, epoch=0):
    lengths = [5 + number * 37 % 41 for number in range(count)]
    plan = EpochBatches(lengths, global_batch=batch, micro_batch=micro, rank=rank, world=world, order=order, seed=seed)
    plan.set_epoch(epoch)
    return plan


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", [1, 3, 4, 7, 8, 9, 23, 24, 25, 97, 200])
def test_every_row_once_and_equal_shares(count, order):
    for batch, world in GEOMETRIES:
        for micro in {1, 2, batch // world}:
            if batch % (micro * world):
                continue
            plans = [batches(count, batch, world, rank, micro, order) for rank in range(world)]
            drawn = [list(plan) for plan in plans]
            seen = Counter(index for rank in drawn for part in rank for index in part)
            fillers = seen.pop(EpochBatches.EMPTY, 0)
            assert seen == Counter(range(count)), (batch, world, micro)
            assert fillers < world
            assert {len(rank) for rank in drawn} == {len(plans[0])}
            assert [[len(part) for part in rank] for rank in drawn] == [[len(part) for part in drawn[0]]] * world


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", [9, 23, 200])
def test_the_global_batches_do_not_depend_on_ranks_and_micro_batches(count, order):
    def global_batches(world, micro):
        steps = 8 // (world * micro)
        ranks = [list(batches(count, 8, world, rank, micro, order)) for rank in range(world)]
        found = []
        for start in range(0, len(ranks[0]), steps):
            parts = [part for rank in ranks for part in rank[start : start + steps]]
            found.append({index for part in parts for index in part if index != EpochBatches.EMPTY})
        return found

    alone = global_batches(1, 8)
    assert [len(batch) for batch in alone] == [8] * (count // 8) + [count % 8] * bool(count % 8)
    for world, micro in ((1, 1), (1, 2), (2, 4), (2, 1), (4, 2), (4, 1)):
        assert global_batches(world, micro) == alone, (world, micro)


@pytest.mark.parametrize("order", ["random", "group_by_length"])
def test_each_epoch_has_its_own_order_and_the_seed_gives_it_back(order):
    orders = [list(batches(64, 8, order=order, epoch=epoch)) for epoch in range(4)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert list(batches(64, 8, order=order, epoch=2)) == orders[2]
    assert list(batches(64, 8, order=order, seed=4)) != orders[0]


def test_sequential_order_is_the_files():
    assert [i for part in batches(10, 4, micro=4, order="sequential", epoch=3) for i in part] == list(range(10))


def test_grouping_by_length_needs_less_padding_and_the_longest_row_comes_with_long_ones():
    def padding(order):
        plan = batches(POOL * 8, 8, micro=8, order=order)
        parts = [[plan.lengths[i] for i in part] for part in plan]
        return sum(max(part) * len(part) - sum(part) for part in parts)

    assert padding("group_by_length") < padding("random") / 10


def test_a_filler_has_no_label_and_counts_no_token():
    from datasets import Dataset

    from tunekit.data.collate import Collator

    rows = Dataset.from_list([{"input_ids": [5, 6, 7, n], "labels": [-100, 6, 7, n]} for n in range(3)])
    loaders = [EpochLoader(rows, batches(3, 2, 2, rank), collate_fn=Collator(0)) for rank in (0, 1)]
    first, second = [list(loader) for loader in loaders]
    assert [int((b["labels"] >= 0).sum()) for b in first] == [3, 3]
    assert [int((b["labels"] >= 0).sum()) for b in second] == [3, 0]
    assert [int(b["tokens"].sum()) for b in second] == [4, 0]


def test_a_filler_adds_nothing_to_loss_and_gradient(session_of, plan_of, talks):
    """The same three rows, alone and beside a filler: loss and every gradient are equal."""
    import torch

    plan = plan_of(data__train=[{"path": str(talks), "limit": 3}], train__batch_size=4)
    trainer = session_of(plan)[1]
    rows = [trainer.train_dataset[i] for i in range(3)]
    filler = trainer.get_train_dataloader().dataset[EpochBatches.EMPTY]
    count = sum(label >= 0 for row in rows for label in row["labels"])
    found = []
    for given in (rows, [*rows, filler]):
        trainer.model.zero_grad()
        batch = trainer.data_collator(given)
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(count))
        loss.backward()
        found.append((loss.item(), [parameter.grad.clone() for parameter in trainer.model.parameters()]))
    (alone, ours), (beside, theirs) = found
    assert beside == pytest.approx(alone, rel=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
