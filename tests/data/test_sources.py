"""Files, folders, globs, the Hub and the demo world become rows with their places."""

import gzip
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from sources_for_tests import Source, arrow, good, parquet, read, write

from tunekit.core.errors import DataError
from tunekit.core.types import Origin, Row
from tunekit.data.columns import pick
from tunekit.data.sources import iter_rows

TWO = {1: {"a": "x"}, 2: {"a": "y"}}
LIST = '[{"a": "x"}, {"a": "y"}]'
LINES = '{"a": "x"}\n{"a": "y"}\n'


CONTAINERS = {
    "list.json": (LIST, TWO),
    "spread.json": ('\n[\n  {\n  "a": "x"\n  }\n,\n {"a":\n "y"}\n]\n', TWO),
    "lines.json": (LINES, TWO),
    "lines.jsonl": (LINES, TWO),
    "lines.ndjson": (LINES, TWO),
    "LINES.JSONL": (LINES, TWO),
    "list.jsonl": (LIST, TWO),
    "spread.jsonl": ("[\n" + LIST[1:-1] + "\n]\n", TWO),
    "one.jsonl": ('{"a": "x"}', {1: {"a": "x"}}),
    "blank.jsonl": ('\n{"a": "x"}\n\n \n{"a": "y"}\n\n', {2: {"a": "x"}, 5: {"a": "y"}}),
    "crlf.jsonl": ('{"a": "x"}\r\n{"a": "y"}\r\n', TWO),
    "mark.jsonl": ("\ufeff" + LINES, TWO),
    "mark.json": ("\ufeff" + LIST, TWO),
    "escapes.jsonl": ('{"a": "\\ud83d\\ude00 \\u0000 \\u2028"}', {1: {"a": "😀 \0 \u2028"}}),
    "plain.csv": ("a\nx\ny\n", {2: {"a": "x"}, 3: {"a": "y"}}),
    "mark.csv": ("\ufeffa\r\nx\r\ny", {2: {"a": "x"}, 3: {"a": "y"}}),
    "quoted.csv": (
        'a,"b, c"\r\n"x ""y""\r\n\n",\r\n"",5" pipe\r\n',
        {2: {"a": 'x "y"\r\n\n', "b, c": ""}, 5: {"a": "", "b, c": '5" pipe'}},
    ),
    "nulls.csv": ("a,b\nNone,NA\n,null\n", {2: {"a": "None", "b": "NA"}, 3: {"a": "", "b": "null"}}),
    "blank.csv": ("\na,b\n\n1,2\n\n3,4", {4: {"a": "1", "b": "2"}, 6: {"a": "3", "b": "4"}}),
    "numbered.csv": ("0,1\nx,y\n", {2: {"0": "x", "1": "y"}}),
    "quotes.tsv": ('a\tb\r\n"x\t"y""\r\n', {2: {"a": '"x', "b": '"y""'}}),
    "file.arrow": (arrow(pa.ipc.new_file), TWO),
    "stream.arrow": (arrow(pa.ipc.new_stream), TWO),
    "table.parquet": (parquet(), TWO),
    "lines.txt": ("one\r\n\n \u3000\n two \nthree", {1: {"text": "one"}, 4: {"text": " two "}, 5: {"text": "three"}}),
    "odd.txt": (
        "a\u2028b\u0085c\x0bd\x0ce\x1cf\rg\nh",
        {1: {"text": "a\u2028b\u0085c\x0bd\x0ce\x1cf\rg"}, 2: {"text": "h"}},
    ),
}


@pytest.mark.parametrize("compressed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_is_read(name, compressed, tmp_path):
    content, expected = CONTAINERS[name]
    data = content.encode() if isinstance(content, str) else content
    packed = {"": lambda b: b, ".gz": gzip.compress, ".zst": zstandard.compress}[compressed](data)
    assert good(tmp_path, write(tmp_path, name + compressed, packed)) == expected


def test_u2028_in_a_json_line_does_not_split_it(tmp_path):
    write(tmp_path, "a.jsonl", '{"a": "x\u2028y\u0085z"}\n{"a": "w"}\n')
    assert good(tmp_path, "a.jsonl") == {1: {"a": "x\u2028y\u0085z"}, 2: {"a": "w"}}


def test_several_frames_and_members_are_one_file(tmp_path):
    write(tmp_path, "a.jsonl.zst", zstandard.compress(b'{"a": "x"}\n') + zstandard.compress(b'{"a": "y"}\n'))
    write(tmp_path, "a.jsonl.gz", gzip.compress(b'{"a": "x"}\n') + gzip.compress(b'{"a": "y"}\n'))
    assert good(tmp_path, "a.jsonl.zst") == good(tmp_path, "a.jsonl.gz") == TWO


def test_characters_and_values_across_block_borders(tmp_path):
    rows = [{"n": i, "t": "字" * (i * 37 % 4000), "f": -1.5e-3, "b": [True, None]} for i in range(400)]
    write(tmp_path, "a.json", json.dumps(rows, ensure_ascii=False))
    write(tmp_path, "b.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    write(tmp_path, "c.json", json.dumps(rows))
    for name in ("a.json", "b.jsonl", "c.json"):
        assert list(good(tmp_path, name).values()) == rows


def test_rows_longer_than_any_buffer(tmp_path):
    text = "word\\n" * 1_200_000
    write(tmp_path, "a.json", '{"text": "' + text + '"}\n{"text": "b"}\n')
    write(tmp_path, "b.json", '[{"text": "' + text + '"}, {"text": "b"}]')
    write(tmp_path, "c.csv", 'text\n"' + "line\n" * 200_000 + '"\nb\n')
    expected = {"a.json": (6_000_000, [1, 2]), "b.json": (6_000_000, [1, 2]), "c.csv": (1_000_000, [2, 200_003])}
    for name, (length, lines) in expected.items():
        rows = good(tmp_path, name)
        assert list(rows) == lines
        assert len(rows[lines[0]]["text"]) == length


@pytest.mark.parametrize("name", ["a.json.gz", "a.jsonl.gz", "a.csv.gz"])
def test_memory_stays_flat(name, tmp_path):
    row = json.dumps({"t": "y" * 1000})
    content = {"a.json.gz": "[" + f"{row},\n" * 8000 + row + "]", "a.jsonl.gz": f"{row}\n" * 8001}.get(name)
    write(tmp_path, name, gzip.compress((content or "t\n" + ("y" * 1000 + "\n") * 8001).encode(), 1))
    del content
    tracemalloc.start()
    count = sum(isinstance(row, Row) for row in iter_rows(Source(name), 0, tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 8001
    assert peak < 2_000_000, peak


def test_reading_is_lazy_and_the_limit_counts_bad_rows(tmp_path):
    write(tmp_path, "a.jsonl", '{"a": 1}\n[]\n{"a": 2}\n')
    write(tmp_path, "b.jsonl", b"\xff")
    rows = read(tmp_path, "*.jsonl", limit=3)
    assert [type(row).__name__ for row in rows] == ["Row", "BadRow", "Row"]
    with pytest.raises(DataError, match=r"b\.jsonl:1"):
        read(tmp_path, "*.jsonl", limit=4)


def test_rows_carry_their_place(tmp_path):
    write(tmp_path, "data/a.jsonl", LINES)
    assert [row.origin for row in iter_rows(Source("data"), 3, tmp_path)] == [
        Origin(3, "data/a.jsonl", 1),
        Origin(3, "data/a.jsonl", 2),
    ]


def test_a_whole_text_file_is_one_row(tmp_path):
    write(tmp_path, "a.txt", "one\r\n\n two\n")
    assert good(tmp_path, "a.txt", text_unit="document") == {1: {"text": "one\r\n\n two\n"}}


@pytest.mark.parametrize("name", ["gbk", "gb18030", "big5", "shift_jis", "utf-16", "utf-16-le", "utf-8-sig"])
def test_a_named_encoding_is_used(name, tmp_path):
    text = "一二三\n二三四\n" * 9000
    write(tmp_path, "a.txt", text.encode(name))
    rows = good(tmp_path, "a.txt", encoding=name)
    assert len(rows) == 18_000
    assert rows[1] == {"text": "一二三"} and rows[18_000] == {"text": "二三四"}


def test_rows_inside_an_object_are_named(tmp_path):
    write(tmp_path, "a.json", '{"meta": {"x": [1]}, "rows": [{"a": "x"}, {"a": "y"}], "end": null}')
    write(tmp_path, "b.json", '{"17": {"a": "x"},\n "9": {"a": "y"}}')
    assert good(tmp_path, "a.json", columns={"rows": "rows"}) == TWO
    assert good(tmp_path, "b.json", columns={"rows": "*"}) == TWO


def test_a_file_without_a_header_is_named_column_by_column(tmp_path):
    write(tmp_path, "a.tsv", "x\t1\ny\t2\n")
    rows = good(tmp_path, "a.tsv", columns={"header": "a, b"})
    assert rows == {1: {"a": "x", "b": "1"}, 2: {"a": "y", "b": "2"}}


def test_reading_imports_nothing_heavy(tmp_path):
    write(tmp_path, "a.jsonl", LINES)
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from sources_for_tests import Source; from tunekit.data.sources import iter_rows\n"
        "from tunekit.data import detect\n"
        "assert len(list(iter_rows(Source('a.jsonl'), 0, Path(sys.argv[2])))) == 2\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'zstandard', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, here, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_pick_walks_into_columns():
    row = {"a": {"b": [{"c": 1}]}, "a.b": 2, "instances": [{"output": "x"}]}
    assert pick(row, "a.b") == 2
    assert pick(row, "a.b.0.c") == 1
    assert pick(row, "instances.0.output") == "x"
