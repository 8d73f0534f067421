"""Rows on their way to disk and back: labels run by run, values read from Arrow's memory, collections left alone."""

import gc

import pyarrow as pa
import pytest

from tunekit.data import store
from tunekit.data.fit import labels_of
from tunekit.data.preparation import libraries_at_rest
from tunekit.data.store import ArrowWriter, RowFile, final_schema, row_schema


@pytest.mark.parametrize(
    ("trained", "labels"),
    [
        ((0, 0, 0, 0), [-100, -100, -100, -100]),
        ((1, 1, 1, 1), [-100, 0, 8, 9]),  # nothing predicts the first; token 0 is a token like any other
        ((0, 1, 0, 1), [-100, 0, -100, 9]),
        ((1, 0, 1, 0), [-100, -100, 8, -100]),
        ((0, 0, 1, 1), [-100, -100, 8, 9]),
    ],
)
def test_labels_of_every_run(trained, labels):
    assert labels_of([7, 0, 8, 9], tuple(map(bool, trained))) == labels


def test_labels_of_very_short_rows():
    assert labels_of([], ()) == []
    assert labels_of([7], (True,)) == [-100]


def row(number):
    size = number % 4
    return {
        "number": number, "length": size, "input_ids": list(range(size)), "labels": [-100, 5, 2**31 - 1][:size],
        "turn_ends": [-1] * (number % 2), "truncated": number % 3 == 0, "prompt_tokens": size,
        "prompt": "问" * (number % 5), "reference": "" if number % 2 else "a",
        "branches": [[], [number], None][number % 3], "score": None if number % 2 else number / 2,
        "columns": None if number % 5 else "{}",
    }  # fmt: skip


def test_rows_are_read_back_from_every_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FLUSH", 7)
    rows = [row(number) for number in range(24)]
    with ArrowWriter(tmp_path / "rows.arrow", row_schema()) as writer:
        for each in rows:
            writer.add(each)
    file = RowFile(tmp_path / "rows.arrow")
    assert len(file.table.to_batches()) == 4
    order = [23, 0, 7, 6, 21, 20, *range(24)]
    assert [file[index] for index in order] == [rows[index] for index in order]
    kinds = {name: type(value) for name, value in file[1].items()}
    assert kinds == {name: type(value) for name, value in rows[1].items()}
    assert type(file[3]["input_ids"][1]) is int


def test_values_that_are_missing_stay_missing(tmp_path):
    final = {"rows": [4], "starts": [0], "position_ids": None, "length": None, "input_ids": [1, 2], "labels": [-100, 2],
             "turn_ends": [], "truncated": None, "prompt_tokens": 1, "prompt": None, "reference": "a",
             "branches": [1], "score": 0.5, "columns": None}  # fmt: skip
    with ArrowWriter(tmp_path / "final.arrow", final_schema()) as writer:
        writer.add(final)
        writer.add(final | {"position_ids": [0, 1], "length": 2, "branches": None, "score": None})
    file = RowFile(tmp_path / "final.arrow")
    other = final | {"position_ids": [0, 1], "length": 2, "branches": None, "score": None}
    assert [file[0], file[1]] == [final, other]


def test_an_empty_file_has_no_rows(tmp_path):
    with ArrowWriter(tmp_path / "rows.arrow", row_schema()):
        pass
    file = RowFile(tmp_path / "rows.arrow")
    assert len(file) == 0 and file.column("number") == []
    assert isinstance(file.table, pa.Table)


def test_garbage_collections_are_as_before_after_a_refusal():
    inside = []

    def refused():
        with libraries_at_rest():
            inside.append(gc.get_freeze_count())
            raise KeyError

    with pytest.raises(KeyError):
        refused()
    assert inside[0] > 0 and gc.get_freeze_count() == 0
    assert gc.isenabled()
