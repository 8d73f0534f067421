"""Where rows come from: files, folders and globs, the Hub, the demo world; and settings that do not fit them."""

import hashlib
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from sources_for_tests import Source, arrow, good, parquet, read, write

from tunekit.core.errors import DataError, MachineError, UserError
from tunekit.data.sources import fingerprint, is_hub, iter_rows, resolve_files

TWO = {1: {"a": "x"}, 2: {"a": "y"}}
LINES = '{"a": "x"}\n{"a": "y"}\n'


def test_folders_are_read_recursively_in_order(tmp_path):
    for name in ("b.jsonl", "a/2.csv", "a/1.json.gz", "a/10.txt", "readme.md", ".hidden.json", "_tmp/x.json", "c.data"):
        write(tmp_path / "d", name, "x")
    names = [path.relative_to(tmp_path / "d").as_posix() for path in resolve_files(Source("d"), tmp_path)]
    assert names == ["a/1.json.gz", "a/10.txt", "a/2.csv", "b.jsonl"]
    assert [path.name for path in resolve_files(Source("d", container="json"), tmp_path)] == ["1.json.gz", "b.jsonl"]


def test_globs(tmp_path):
    for name in ("b1.jsonl", "b2.data", "a/b3.jsonl", "c.jsonl"):
        write(tmp_path, name, LINES)
    assert [p.name for p in resolve_files(Source("b*"), tmp_path)] == ["b1.jsonl"]
    assert [p.name for p in resolve_files(Source("**/b*"), tmp_path)] == ["b3.jsonl", "b1.jsonl"]
    assert [p.name for p in resolve_files(Source("b*", container="jsonl"), tmp_path)] == ["b1.jsonl", "b2.data"]
    write(tmp_path, "odd[1].jsonl", LINES)
    assert [p.name for p in resolve_files(Source("odd[1].jsonl"), tmp_path)] == ["odd[1].jsonl"]


def test_the_recipes_folder_comes_before_the_current_one(tmp_path, monkeypatch):
    write(tmp_path / "recipe", "a.jsonl", '{"a": "recipe"}')
    write(tmp_path / "here", "a.jsonl", '{"a": "here"}')
    write(tmp_path / "here", "b.jsonl", '{"a": "here"}')
    monkeypatch.chdir(tmp_path / "here")
    assert good(tmp_path / "recipe", "a.jsonl") == {1: {"a": "recipe"}}
    assert good(tmp_path / "recipe", "b.jsonl") == {1: {"a": "here"}}
    assert read(tmp_path / "recipe", "b.jsonl")[0].origin.file == "b.jsonl"


def test_what_datasets_saves_to_disk_is_read_without_its_bookkeeping(tmp_path):
    write(tmp_path, "saved/data-00000-of-00001.arrow", arrow(pa.ipc.new_stream))
    write(tmp_path, "saved/dataset_info.json", "{}")
    write(tmp_path, "saved/state.json", "{}")
    assert good(tmp_path, "saved") == TWO
    write(tmp_path, "several/dataset_dict.json", "{}")
    write(tmp_path, "several/train/state.json", "{}")
    with pytest.raises(DataError) as caught:
        read(tmp_path, "several")
    assert "train" in caught.value.fix


@pytest.mark.parametrize(
    ("path", "fix"),
    [
        ("trian.jsonl", "did you mean 'train.jsonl'?"),
        ("./train.json", "did you mean 'train.jsonl'?"),
        ("data/eval.csv", "data does not exist"),
        ("sbu/train.jsonl", "did you mean 'sub'?"),
        ("train.jsonl/x.json", "correct the path"),
        ("sub/trian", "did you mean 'train'?"),
        ("*.parquet", "starts at the recipe's folder"),
        ("/nowhere/at/all.json", "the folder /nowhere"),
    ],
)
def test_a_missing_file_names_the_nearest_and_never_asks_the_network(path, fix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    write(tmp_path, "train.jsonl", LINES)
    write(tmp_path, "sub/train/a.jsonl", LINES)
    with pytest.raises(UserError) as caught:
        read(tmp_path, path)
    assert caught.value.exit_code == 2
    assert f"there is no '{path}'" in str(caught.value)
    assert fix in caught.value.fix


def test_a_missing_file_names_the_places_that_were_searched(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    write(tmp_path, "train.jsonl", LINES)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        read(Path("recipes"), "trian.jsonl")
    places = f"in the recipe's folder ({tmp_path}/recipes) or the working folder ({tmp_path})"
    assert str(caught.value) == f"there is no 'trian.jsonl' {places}"
    assert caught.value.fix == f"did you mean 'train.jsonl'? (in {tmp_path})"
    with pytest.raises(UserError, match="which is also the working folder"):
        read(Path(), "trian.jsonl")


def test_a_folder_without_data(tmp_path):
    write(tmp_path, "d/readme.md", "x")
    with pytest.raises(DataError, match="holds no data files"):
        read(tmp_path, "d")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "train"}, "`split: train` has no meaning"),
        ({"name": "en"}, "`name: en`"),
        ({"revision": "v1"}, "`revision: v1`"),
        ({"encoding": "gkb"}, "'gkb' is not a text encoding"),
        ({"encoding": "hex"}, "'hex' is not"),
        ({"container": "jsnl"}, "unknown container 'jsnl'"),
        ({"text_unit": "document"}, "`text_unit: document` has no meaning for jsonl"),
        ({"columns": {"header": "a"}}, "header"),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_an_error(options, message, tmp_path):
    with pytest.raises(UserError) as caught:
        read(tmp_path, write(tmp_path, "a.jsonl", LINES), **options)
    assert message in str(caught.value)
    assert caught.value.fix


def test_an_encoding_for_parquet_is_an_error(tmp_path):
    with pytest.raises(UserError, match="encoding: gbk"):
        read(tmp_path, write(tmp_path, "a.parquet", parquet()), encoding="gbk")


def test_fingerprints_follow_the_content(tmp_path):
    write(tmp_path, "a.jsonl", LINES)
    first = fingerprint(Source("a.jsonl"), tmp_path)
    digest = hashlib.sha256(LINES.encode()).hexdigest()
    assert first == [{"file": "a.jsonl", "size": 22, "sha256": digest}]
    write(tmp_path, "a.jsonl", LINES.replace("y", "z"))
    assert fingerprint(Source("a.jsonl"), tmp_path)[0]["sha256"] != first[0]["sha256"]


def test_the_demo_world(tmp_path):
    rows = list(iter_rows(Source("builtin:chats", limit=3), 0, tmp_path))
    assert [str(row.origin) for row in rows] == [f"builtin:chats[train]:{i}" for i in (1, 2, 3)]
    held = list(iter_rows(Source("builtin:chats", split="held_out", limit=1), 0, tmp_path))
    assert held[0].origin.file == "builtin:chats[held_out]"
    assert len(fingerprint(Source("builtin:chats"), tmp_path)[0]["sha256"]) == 64
    with pytest.raises(UserError) as caught:
        read(tmp_path, "builtin:chat")
    assert caught.value.fix == "did you mean 'chats'?"
    with pytest.raises(UserError, match="no split 'test'"):
        read(tmp_path, "builtin:chats", split="test")


@pytest.mark.parametrize(
    ("path", "revision", "hub"),
    [
        ("openai/gsm8k", None, True),
        ("squad", None, False),
        ("squad", "main", True),
        ("./openai/gsm8k", None, False),
        ("../a/b", None, False),
        ("/openai/gsm8k", None, False),
        ("~/gsm8k", None, False),
        ("openai/gsm8k.jsonl", None, False),
        ("openai/gsm8k.json.gz", None, False),
        ("openai/*", None, False),
        ("a/b/c", None, False),
        ("local/gsm8k", None, False),
    ],
)
def test_what_is_a_hub_id(path, revision, hub, tmp_path):
    (tmp_path / "local").mkdir()
    assert is_hub(Source(path, revision=revision), tmp_path) is hub


def test_hub_rows_are_streamed(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return iter([{"a": "x"}, {"a": "y"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read(tmp_path, "org/set", name="en", revision="v1", split="test")
    assert [(str(row.origin), row.value) for row in rows] == [
        ("org/set:en@v1[test]:1", {"a": "x"}),
        ("org/set:en@v1[test]:2", {"a": "y"}),
    ]
    assert asked == [(("org/set", "en"), {"split": "test", "revision": "v1", "streaming": True})]
    read(tmp_path, "org/set")
    assert asked[1] == (("org/set", None), {"split": "train", "revision": None, "streaming": True})


def hub_errors():
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    transport = HfHubHTTPError.__bases__[0]
    return [
        (DatasetNotFoundError("not on the Hub"), MachineError, "hf auth login"),
        (ConnectionError("no route"), MachineError, "network"),
        (OfflineModeIsEnabled("offline"), MachineError, "HF_HUB_OFFLINE"),
        (transport("connection reset"), MachineError, "network"),
        (ValueError('Unknown split "test"'), UserError, "`split`"),
        (RuntimeError("Dataset scripts are no longer supported"), DataError, "runs no code"),
    ]


@pytest.mark.parametrize("case", range(6))
@pytest.mark.parametrize("late", [False, True])
def test_hub_failures_are_explained(case, late, tmp_path, monkeypatch):
    import datasets

    error, kind, fix = hub_errors()[case]

    def rows():
        yield {"a": "x"}
        raise error

    def load_dataset(*args, **kwargs):
        if late:
            return rows()
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(kind) as caught:
        read(tmp_path, "org/set")
    assert "'org/set'" in str(caught.value)
    assert fix in caught.value.fix


def test_a_hub_fingerprint_is_the_resolved_commit(tmp_path, monkeypatch):
    import huggingface_hub

    class Info:
        sha = "0123abcd"

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, path, revision: Info())
    found = fingerprint(Source("org/set"), tmp_path)
    assert found[0]["file"] == "org/set@0123abcd[train]"
