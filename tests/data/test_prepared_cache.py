"""Prepared data is found again exactly when nothing that shapes it changed; half of it is never left."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest
from preparation_for_tests import TINY, Made, recipe, talk, write

from tunekit.data import cache
from tunekit.data.preparation import Preparation
from tunekit.train.inputs import Inputs


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def rows(tmp_path):
    return write(tmp_path / "rows.jsonl", [talk(n) for n in range(12)])


def another_template(tmp_path):
    path = tmp_path / "other.jinja"
    source = Inputs(recipe("x"), tmp_path).tokenizer.chat_template
    path.write_text(source + "{# another #}", encoding="utf-8")
    return {"model__chat_template": str(path)}


def another_tokenizer(tmp_path):
    tokenizer = Inputs(recipe("x"), tmp_path).tokenizer
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return {"model__tokenizer": str(tmp_path / "tokenizer")}


CHANGES = {
    "rows: content": ("rows", None),
    "rows: weight": ("rows", {"weight": 2.0}),
    "rows: limit": ("rows", {"limit": 11}),
    "tokenizer": ("tokenizer", another_tokenizer),
    "template": ("template", another_template),
    "mask": ("mask", {"data__loss_on": "all"}),
    "max_length": ("lengths", {"data__max_length": 63}),
    "overlong": ("lengths", {"data__overlong": "drop"}),
    "packing": ("lengths", {"data__packing": True}),
    "embedding": ("lengths", {"model__name": f"{TINY}&vocab=2050"}),
    "seed": ("split", {"train__seed": 7}),
    "held out": ("split", {"data__eval": {"count": 2}}),
    "duplicates": ("policy", {"data__duplicates": "drop"}),
    "drop rate": ("policy", {"data__max_drop_rate": 0.5}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_part_makes_a_new_key_and_why_names_it(change, rows, tmp_path):
    part, what = CHANGES[change]
    first = Made(recipe(rows), tmp_path)
    before, folder = first.inputs.key, cache.root()
    assert cache.why(before, folder)[0]
    if what is None:
        write(rows, [talk(n) for n in range(11)])
        wanted = recipe(rows)
    elif part == "rows":
        wanted = recipe({"path": str(rows), **what})
    else:
        wanted = recipe(rows, **(what(tmp_path) if callable(what) else what))
    key = Inputs(wanted, tmp_path).key
    assert key.name != before.name
    found, nearest, changed = cache.why(key, folder)
    assert not found and nearest.folder == first.prepared.folder
    assert [name for name, _ in changed] == [part]


def test_editing_tunekits_own_code_makes_a_new_key(rows, tmp_path, monkeypatch):
    first = Made(recipe(rows), tmp_path)
    monkeypatch.setattr(cache, "code_version", lambda: "edited")
    found, _, changed = cache.why(Inputs(recipe(rows), tmp_path).key, cache.root())
    assert not found and [name for name, _ in changed] == ["code"]
    assert set(first.inputs.key.parts) == set(cache.PARTS)


def test_what_does_not_shape_the_data_finds_it_again(rows, tmp_path):
    first = Made(recipe(rows), tmp_path)
    again = Made(recipe(rows, train__learning_rate=1e-3, train__batch_size=4, data__shuffle=False), tmp_path)
    assert again.prepared.folder == first.prepared.folder
    copy = write(tmp_path / "copy.jsonl", [talk(n) for n in range(12)])
    assert Made(recipe(copy), tmp_path).prepared.folder != first.prepared.folder  # rows are named by their file


@pytest.mark.parametrize("at", ["_write_final", "_read", "_write"])
def test_a_crash_in_the_middle_leaves_nothing(at, rows, tmp_path, monkeypatch):
    original = getattr(Preparation, at)

    def crash(self, *args):
        original(self, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Preparation, at, crash)
        with pytest.raises(KeyboardInterrupt):
            Made(recipe(rows), tmp_path)
    assert list(cache.root().iterdir()) == [] and not cache.kept(cache.root())
    assert len(Made(recipe(rows), tmp_path).rows()) == 12


def test_a_folder_without_its_key_is_made_anew(rows, tmp_path):
    """An interrupted deletion leaves a folder that is not complete."""
    first = Made(recipe(rows), tmp_path)
    (first.prepared.folder / "key.json").unlink()
    (first.prepared.folder / "train.arrow").write_bytes(b"half")
    assert len(Made(recipe(rows), tmp_path).rows()) == 12
    assert json.loads((first.prepared.folder / "key.json").read_text())["mask"] == "assistant"


def test_two_runs_at_once_share_one_preparation(rows, tmp_path, monkeypatch):
    """Both are in the middle of it at the same time; both end with the same complete folder."""
    both = threading.Barrier(2, timeout=60)
    original = Preparation._write_final

    def together(self, *args):
        both.wait()
        return original(self, *args)

    monkeypatch.setattr(Preparation, "_write_final", together)
    made, failed = [], []

    def prepare():
        try:
            made.append(Made(recipe(rows), tmp_path))
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failed.append(error)

    threads = [threading.Thread(target=prepare) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and made[0].prepared.folder == made[1].prepared.folder
    assert made[0].rows() == made[1].rows() and len(list(cache.root().iterdir())) == 1


def test_a_key_is_its_parts(rows, tmp_path):
    key = Inputs(recipe(rows), tmp_path).key
    assert replace(key, parts=dict(reversed(list(key.parts.items())))).name == key.name


def test_the_slower_of_two_runs_leaves_the_faster_ones_folder_alone(rows, tmp_path):
    """The faster run may be reading it already."""
    key, folder = Inputs(recipe(rows), tmp_path).key, tmp_path / "kept"
    inner = []

    def slower(staging):
        inner.append(cache.keep(key, folder, lambda other: (other / "data").write_text("faster")))
        inner.append(inner[0].stat().st_ino)
        (staging / "data").write_text("slower")

    final = cache.keep(key, folder, slower)
    assert final == inner[0] and final.stat().st_ino == inner[1]
    assert (final / "data").read_text() == "faster" and len(list(folder.iterdir())) == 1
