"""Best-fit packing: nothing lost, nothing over, as good as its bound; and streams, which pack within a window."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from preparation_for_tests import Made, chat, recipe, talk, write

from tunekit.core.errors import DataError
from tunekit.data.pack import best_fit
from tunekit.train.inputs import Inputs


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_by_hand():
    # longest first: 7 opens a row, 6 another, 5 a third; 4 fits the second exactly (room 4), 3 the first, 2 the third
    assert best_fit([5, 3, 7, 2, 6, 4], 10) == [[2, 1], [4, 5], [0, 3]]
    # 8 leaves 2 and 7 leaves 3: the 2 goes where it fits tightest
    assert best_fit([2, 7, 8], 10) == [[2, 0], [1]]
    assert best_fit([4, 4, 4, 4], 8) == [[0, 1], [2, 3]]
    assert best_fit([10], 10) == [[0]] and best_fit([], 10) == []


def reference(lengths, capacity):
    """Best-fit decreasing as the textbook has it: look at every row."""
    rows, room = [], []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [r for r in range(len(rows)) if room[r] >= lengths[index]]
        if fitting:
            row = min(fitting, key=lambda r: room[r])
        else:
            row = len(rows)
            rows.append([])
            room.append(capacity)
        rows[row].append(index)
        room[row] -= lengths[index]
    return sorted(room), rows


@pytest.mark.parametrize("seed", range(30))
def test_nothing_is_lost_and_no_row_is_over(seed):
    dice = random.Random(seed)
    capacity = dice.choice([8, 64, 500])
    lengths = [dice.randint(1, dice.choice([capacity, max(2, capacity // 5)])) for _ in range(dice.randint(1, 400))]
    rows = best_fit(lengths, capacity)
    assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in row) for row in rows]
    assert max(sums) <= capacity
    room, _ = reference(lengths, capacity)
    assert len(rows) == len(room)
    assert rows == best_fit(list(lengths), capacity)
    assert 9 * (len(rows) - 1) <= 11 * -(-sum(lengths) // capacity) + 9  # Johnson's 11/9 OPT + 6/9; OPT >= the volume


def test_packed_data_holds_the_rows_of_unpacked_data(tmp_path):
    path = write(tmp_path / "rows.jsonl", [talk(n) for n in range(50)])
    plain, packed = (Made(recipe(path, data__packing=on, data__max_length=160), tmp_path) for on in (False, True))
    alone = {row["rows"][0]: (row["input_ids"], row["labels"]) for row in plain.rows()}
    found = {}
    for row in packed.rows():
        cuts = [*row["starts"], row["length"]]
        assert row["length"] <= 160
        if len(row["rows"]) > 1:
            assert row["position_ids"] == [p for a, b in itertools.pairwise(cuts) for p in range(b - a)]
        for number, (begin, end) in zip(row["rows"], itertools.pairwise(cuts), strict=True):
            found[number] = (row["input_ids"][begin:end], row["labels"][begin:end])
    assert found == alone
    assert len(packed.rows()) < len(plain.rows()) / 3
    filled = sum(row["length"] for row in packed.rows()) / (160 * len(packed.rows()))
    assert packed.facts["filled"] == pytest.approx(filled) and filled > 0.8


def stream_of(tmp_path, *sources, **sets):
    wanted = recipe(*sources, data__streaming=True, train__max_steps=1, **sets)
    return Inputs(wanted, Path(tmp_path)).stream


COMPARED = ("input_ids", "labels", "position_ids", "turn_ends", "starts", "length", "truncated")


@pytest.mark.parametrize("packing", [False, True])
def test_a_stream_gives_the_prepared_examples(packing, tmp_path):
    rows = [talk(n) for n in range(300)] + [chat("All", "word " * 100), chat("word " * 100, "Yes.")]
    path = write(tmp_path / "rows.jsonl", rows)
    made = Made(recipe(path, data__packing=packing), tmp_path)
    stream = stream_of(tmp_path, path, data__packing=packing)
    found = list(itertools.islice(stream.examples(), len(made.rows())))
    for ours, theirs in zip(found, made.rows(), strict=True):
        assert {name: ours[name] for name in COMPARED} == {name: theirs[name] for name in COMPARED}
    streamed = [(e.origin.line, e.fate, e.reason, e.tokens, e.trained_tokens) for e in stream.ledger]
    prepared = [(e.origin.line, e.fate, e.reason, e.tokens, e.trained_tokens) for e in made.ledger]
    assert streamed == prepared
    assert stream.ledger.summary()["train"]["lost_tokens"] == made.summary["train"]["lost_tokens"]


def test_a_stream_begins_anew_when_its_data_ends(tmp_path):
    path = write(tmp_path / "rows.jsonl", [talk(n) for n in range(5)])
    found = [row["input_ids"] for row in itertools.islice(stream_of(tmp_path, path).examples(), 12)]
    assert found[:5] == found[5:10] and found[10:] == found[:2]


def test_a_streams_ledger_counts_each_row_once(tmp_path):
    path = write(tmp_path / "rows.jsonl", [talk(n) for n in range(5)])
    stream = stream_of(tmp_path, path)
    list(itertools.islice(stream.examples(), 12))
    assert stream.ledger.summary()["train"]["rows"] == 5


def test_a_stream_that_loses_too_much_stops(tmp_path):
    path = write(tmp_path / "rows.jsonl", [talk(n) if n % 10 else "{broken" for n in range(400)])
    allowed = stream_of(tmp_path, path, data__max_drop_rate=0.11)
    assert len(list(itertools.islice(allowed.examples(), 360))) == 360
    with pytest.raises(DataError, match="train rows cannot be used"):
        list(itertools.islice(stream_of(tmp_path, path, data__max_drop_rate=0.09).examples(), 360))


def test_a_stream_without_a_good_row_stops(tmp_path):
    path = write(tmp_path / "rows.jsonl", [chat("word " * 100, "Yes.")] * 5)
    with pytest.raises(DataError):
        next(iter(stream_of(tmp_path, path).examples()))


def test_the_gate_stands_in_a_stream_too(tmp_path):
    path = write(tmp_path / "rows.jsonl", [talk(n) for n in range(5)])
    stream = stream_of(tmp_path, path, model__name="builtin:random?layers=1&hidden=32&vocab=100")
    with pytest.raises(DataError, match="outside the model's embedding"):
        next(iter(stream.examples()))


def test_a_long_row_in_a_stream_is_an_error_when_the_recipe_says_so(tmp_path):
    path = write(tmp_path / "rows.jsonl", [talk(1), chat("All", "word " * 100)])
    with pytest.raises(DataError, match=r"longer than data\.max_length") as caught:
        next(iter(stream_of(tmp_path, path, data__overlong="error").examples()))
    assert caught.value.problems[0].where.endswith("rows.jsonl:2")


def test_the_window_is_shuffled_by_the_seed(tmp_path):
    path = write(tmp_path / "rows.jsonl", [talk(n) for n in range(40)])

    def order(**sets):
        rows = itertools.islice(iter(stream_of(tmp_path, path, **sets).dataset()), 40)
        return [row["rows"][0] for row in rows]

    assert order(data__shuffle=False) == list(range(40))
    assert order() == order() != order(train__seed=1)
