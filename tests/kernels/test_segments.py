"""A batch as one flat row, against what was worked out by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest

NO = -100


def batch_of(ids, labels, positions, tokens):
    import torch

    batch = {"input_ids": ids, "labels": labels, "position_ids": positions, "tokens": tokens}
    return {name: torch.tensor(values) for name, values in batch.items()}


def as_lists(flat):
    segments = flat["segments"]
    values = {name: flat[name].tolist() for name in ("input_ids", "position_ids", "keep", "targets")}
    return values | {"starts": segments.starts.tolist(), "lengths": segments.lengths, "groups": segments.groups}


PADDED = {  # rows of 3, 5 and 3 tokens
    "ids": [[11, 12, 13, 0, 0, 0], [21, 22, 23, 24, 25, 0], [31, 32, 33, 0, 0, 0]],
    "labels": [[NO, 12, 13, NO, NO, NO], [NO, NO, NO, 24, 25, NO], [NO, NO, 33, NO, NO, NO]],
    "positions": [[0, 1, 2, 3, 4, 5]] * 3,
    "tokens": [3, 5, 3],
}
PACKED = {  # documents of 2 and 3 tokens; of 1 and 3; both with padding that goes on counting
    "ids": [[11, 12, 21, 22, 23, 0, 0, 0], [31, 41, 42, 43, 0, 0, 0, 0]],
    "labels": [[NO, 12, NO, NO, 23, NO, NO, NO], [NO, NO, 42, 43, NO, NO, NO, NO]],
    "positions": [[0, 1, 0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 3, 4, 5, 6]],
    "tokens": [5, 4],
}
FILLED = {  # a row and a filler, which has one token and counts none
    "ids": [[11, 12, 13, 0], [77, 0, 0, 0]],
    "labels": [[NO, 12, 13, NO], [NO, NO, NO, NO]],
    "positions": [[0, 1, 2, 3]] * 2,
    "tokens": [3, 0],
}
FILLERS = {"ids": [[77, 0], [78, 0]], "labels": [[NO, NO]] * 2, "positions": [[0, 1]] * 2, "tokens": [0, 0]}
PRETRAIN = {  # two documents as one segment: positions do not begin anew; and a row that fills the whole width
    "ids": [[11, 12, 13, 14, 15], [21, 22, 23, 24, 0]],
    "labels": [[NO, 12, NO, 14, 15], [NO, 22, 23, 24, NO]],
    "positions": [[0, 1, 2, 3, 4]] * 2,
    "tokens": [5, 4],
}
EXPECTED = {
    "padded": (PADDED, {
        "input_ids": [[21, 22, 23, 24, 25, 11, 12, 13, 31, 32, 33]],
        "position_ids": [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2]],
        "keep": [2, 3, 5, 6, 9], "targets": [24, 25, 12, 13, 33],
        "starts": [0, 5, 8, 11], "lengths": (5, 3, 3), "groups": ((1, 5), (2, 3)),
    }),
    "packed": (PACKED, {
        "input_ids": [[21, 22, 23, 41, 42, 43, 11, 12, 31]], "position_ids": [[0, 1, 2, 0, 1, 2, 0, 1, 0]],
        "keep": [1, 3, 4, 6], "targets": [23, 42, 43, 12],
        "starts": [0, 3, 6, 8, 9], "lengths": (3, 3, 2, 1), "groups": ((2, 3), (1, 2), (1, 1)),
    }),
    "a filler": (FILLED, {
        "input_ids": [[11, 12, 13, 77]], "position_ids": [[0, 1, 2, 0]], "keep": [0, 1], "targets": [12, 13],
        "starts": [0, 3, 4], "lengths": (3, 1), "groups": ((1, 3), (1, 1)),
    }),
    "only fillers": (FILLERS, {
        "input_ids": [[77, 78]], "position_ids": [[0, 0]], "keep": [], "targets": [],
        "starts": [0, 1, 2], "lengths": (1, 1), "groups": ((2, 1),),
    }),
    "pretraining": (PRETRAIN, {
        "input_ids": [[11, 12, 13, 14, 15, 21, 22, 23, 24]], "position_ids": [[0, 1, 2, 3, 4, 0, 1, 2, 3]],
        "keep": [0, 2, 3, 5, 6, 7], "targets": [12, 14, 15, 22, 23, 24],
        "starts": [0, 5, 9], "lengths": (5, 4), "groups": ((1, 5), (1, 4)),
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_a_flat_row_is_what_was_worked_out_by_hand(name):
    import torch

    from tunekit.kernels.segments import flatten

    given, expected = EXPECTED[name]
    flat = flatten(batch_of(**given))
    assert as_lists(flat) == expected
    assert flat["segments"].starts.dtype == torch.int32
    assert flat["segments"].longest == expected["lengths"][0]


PADDED_LABELS = {
    "padded": ([0, 1, 8, 9, 13], [12, 13, 24, 25, 33]),
    "packed": ([0, 3, 9, 10], [12, 23, 42, 43]),
    "a filler": ([0, 1], [12, 13]),
    "only fillers": ([], []),
    "pretraining": ([0, 2, 3, 5, 6, 7], [12, 14, 15, 22, 23, 24]),
}


@pytest.mark.parametrize("name", PADDED_LABELS)
def test_label_positions_of_a_padded_batch_are_what_was_worked_out_by_hand(name):
    import torch

    from tunekit.kernels.segments import label_positions

    labels = torch.tensor(EXPECTED[name][0]["labels"])
    before = labels.clone()
    found = label_positions(labels)
    keep, targets = PADDED_LABELS[name]
    assert (found["keep"].tolist(), found["targets"].tolist()) == (keep, targets)
    assert torch.equal(labels, before)


def test_a_labelled_first_token_is_never_predicted_from_the_document_before():
    """The data code never labels one; if it did, the label before it must not move over."""
    from tunekit.kernels.segments import flatten

    labels = [[11, 12, 21, 22, 23, NO, NO, NO], [31, 41, 42, 43, NO, NO, NO, NO]]
    flat = flatten(batch_of(**PACKED | {"labels": labels}))
    assert (flat["keep"].tolist(), flat["targets"].tolist()) == ([0, 1, 3, 4, 6], [22, 23, 42, 43, 12])


def test_a_real_token_that_equals_the_pad_token_stays():
    from tunekit.kernels.segments import flatten

    flat = flatten(batch_of([[0, 5, 0, 0]], [[NO, 5, 0, NO]], [[0, 1, 2, 3]], [3]))
    assert flat["input_ids"].tolist() == [[0, 5, 0]]
    assert (flat["keep"].tolist(), flat["targets"].tolist()) == ([0, 1], [5, 0])


def test_random_batches_hold_the_same_labelled_tokens_as_their_documents():
    """Against a plain loop over the documents, for many shapes."""
    import random

    from kernels_for_tests import documents

    from tunekit.data.collate import Collator
    from tunekit.data.store import join
    from tunekit.kernels.segments import flatten

    for seed in range(30):
        pick = random.Random(seed)
        rows = documents([pick.randint(1, 12) for _ in range(pick.randint(1, 9))], seed)
        cut = pick.randint(0, len(rows))
        examples = [join(part, True) for part in (rows[:cut], rows[cut:]) if part]
        flat = flatten(Collator(0)(examples))
        ids, starts = flat["input_ids"][0].tolist(), flat["segments"].starts.tolist()
        found = sorted(ids[a:b] for a, b in pairwise(starts))
        assert found == sorted(row["input_ids"] for row in rows)
        pairs = [(row["input_ids"][at - 1], row["labels"][at]) for row in rows for at in range(1, row["length"])]
        kept = [(ids[at], target) for at, target in zip(flat["keep"].tolist(), flat["targets"].tolist())]
        assert sorted(kept) == sorted(pair for pair in pairs if pair[1] != NO)
