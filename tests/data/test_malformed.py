"""Files with faults: each gives the right refusal at the right place, and good rows around it are still read."""

import gzip
import json
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from sources_for_tests import Source, arrow, read, write

from tunekit.core.errors import DataError
from tunekit.core.types import BadRow, Row
from tunekit.data.sources import iter_rows

GOOD = '{"text": "a"}\n'
PAIRS = "q,a\n1,one\n"
CHINESE = "department,ask\n内科,高血压患者能吃党参吗？我有高血压这两天女婿来的时候给我拿了些党参泡水喝\n"
JAPANESE = "これは日本語の文章です。とても短いですが、文字コードを推定するには十分でしょう。"
TAIWAN = "今天天氣很好，我們一起去公園散步吧。晚上還可以去看電影，你覺得怎麼樣呢？"
GERMAN = "Die Müllabfuhr kommt am nächsten Dienstag. Schöne Grüße aus Köln, und viel Spaß!\n"


@dataclass
class Bad:
    """Rows that are refused one by one: line -> words of the reason; ``good`` lines are read."""

    file: str
    content: bytes
    lines: dict[int, str]
    good: tuple[int, ...] = ()
    options: dict = field(default_factory=dict)


def bad(file, content, lines, good=(), **options):
    return Bad(
        file, content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content, lines, good, options
    )


LONG = "x" * 300_000
ROWS = {
    "line is a list": bad("a.jsonl", GOOD + "[1, 2]\n" + GOOD, {2: "a list where an object"}, (1, 3)),
    "first line is a list": bad("a.jsonl", "[1, 2]\n" + GOOD, {1: "a list where an object"}, (2,)),
    "line is a number": bad("a.jsonl", GOOD + "5\n", {2: "the number 5 where an object"}, (1,)),
    "line is text": bad("a.jsonl", '"a"\n' + GOOD, {1: "text where an object"}, (2,)),
    "line is null": bad("a.jsonl", GOOD + "null\n" + GOOD, {2: "null where an object"}, (1, 3)),
    "line is true": bad("a.jsonl", GOOD + "true\n", {2: "true where an object"}, (1,)),
    "cut last line": bad("a.jsonl", GOOD + '{"text": "b', {2: "breaks off in the middle"}, (1,)),
    "cut after the colon": bad("a.jsonl", GOOD + '{"text":', {2: "breaks off in the middle"}, (1,)),
    "only line is cut": bad("a.jsonl", '{"text": "b', {1: "breaks off in the middle"}),
    "first line of a .json is cut": bad("a.json", '{"text": "b\n' + GOOD + GOOD, {1: "not JSON"}, (2, 3)),
    "missing comma": bad("a.jsonl", '{"a": 1 "b": 2}\n' + GOOD, {1: "column 9"}, (2,)),
    "single quotes": bad("a.jsonl", GOOD + "{'text': 'a'}\n" + GOOD, {2: "not JSON"}, (1, 3)),
    "trailing comma": bad("a.jsonl", GOOD + '{"a": 1,}\n', {2: "not JSON"}, (1,)),
    "comment line": bad("a.jsonl", "# made by hand\n" + GOOD, {1: "not JSON"}, (2,)),
    "two objects on a line": bad("a.jsonl", GOOD + '{"a": 1}{"a": 2}\n' + GOOD, {2: "more content"}, (1, 3)),
    "comma after an object": bad("a.jsonl", '{"a": 1},\n' + GOOD, {1: "more content"}, (2,)),
    "repeated key": bad("a.jsonl", GOOD + '{"a": 1, "a": 2}\n', {2: "the key 'a' stands twice"}, (1,)),
    "repeated key inside": bad(
        "a.jsonl", '{"m": [{"role": "u", "role": "a"}]}\n' + GOOD, {1: "'role' stands twice"}, (2,)
    ),
    "NaN": bad("a.jsonl", GOOD + '{"a": NaN}\n' + GOOD, {2: "NaN is not a JSON value"}, (1, 3)),
    "Infinity": bad("a.jsonl", GOOD + '{"a": -Infinity}\n', {2: "-Infinity is not"}, (1,)),
    "too large a number": bad("a.jsonl", GOOD + '{"a": 1e999}\n', {2: "too large"}, (1,)),
    "endless integer": bad("a.jsonl", GOOD + '{"a": ' + "9" * 5000 + "}\n" + GOOD, {2: "4300 digits"}, (1, 3)),
    "lone surrogate": bad("a.jsonl", GOOD + '{"a": "x\\ud800y"}\n' + GOOD, {2: "\\ud800 is a lone surrogate"}, (1, 3)),
    "lone low surrogate": bad("a.jsonl", GOOD + '{"a": ["\\uDC00"]}\n', {2: "lone surrogate"}, (1,)),
    "NUL byte in json": bad("a.jsonl", GOOD + '{"a": "x\0y"}\n' + GOOD, {2: "NUL byte"}, (1, 3)),
    "raw tab in a string": bad("a.jsonl", GOOD + '{"a": "x\ty"}\n', {2: "control character"}, (1,)),
    "byte-order mark inside": bad("a.jsonl", GOOD + "\ufeff" + GOOD, {2: "byte-order mark"}, (1,)),
    "nested too deeply": bad("a.jsonl", GOOD + "[" * 100_000 + "\n" + GOOD, {2: "nested too deeply"}, (1, 3)),
    "wrong escape": bad("a.jsonl", GOOD + '{"a": "C:\\dir"}\n', {2: "escape"}, (1,)),
    "long bad line": bad("a.jsonl", GOOD + '{"a": "' + LONG + "\n" + GOOD, {2: "breaks off"}, (1, 3)),
    "list element is text": bad("a.json", '[{"a": 1}, "b",\n {"a": 2}]', {2: "text where an object"}, (1, 3)),
    "list element repeats a key": bad("a.json", '[{"a": 1, "a": 1}, {"a": 2}]', {1: "stands twice"}, (2,)),
    "list element with NaN": bad("a.json", '[{"a": 1}, {"a": NaN}]', {2: "NaN"}, (1,)),
    "list element with half a character": bad("a.json", '[{"a": "\\ud83d"}, {"a": 2}]', {1: "surrogate"}, (2,)),
    "a list of labels": bad("a.json", '["a", "b"]', {1: "text where", 2: "text where"}),
    "values of an object": bad("a.json", '{"x": {"a": 1}, "y": 5}', {2: "the number 5"}, (1,), columns={"rows": "*"}),
    "csv with a field too few": bad("a.csv", PAIRS + "2\n3,three\n", {3: "1 field, but the header has 2"}, (2, 4)),
    "csv with a field too many": bad("a.csv", PAIRS + "2,b,c\n", {3: "3 fields, but the header has 2"}, (2,)),
    "csv with text after a quote": bad("a.csv", PAIRS + '"2"x,b\n3,c\n', {3: "after the closing quote"}, (2, 4)),
    "csv with a NUL byte": bad("a.csv", PAIRS + "2,b\0\n", {3: "NUL"}, (2,)),
    "ragged csv after a quoted newline": bad("a.csv", 'q,a\n"1\n\n",x\n2\n', {5: "1 field"}, (2,)),
    "tsv with a field too many": bad("a.tsv", 'q\ta\n"1\t2"\tx\n3\tc\n', {2: "3 fields"}, (3,)),
    "txt with a NUL byte": bad("a.txt", "one\ntw\0o\nthree\n", {2: "NUL"}, (1, 3)),
    "gz with a bad line": bad("a.jsonl.gz", gzip.compress((GOOD + "{\n").encode()), {2: "breaks off"}, (1,)),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_line_is_one_bad_row(name, tmp_path):
    case = ROWS[name]
    rows = read(tmp_path, write(tmp_path, case.file, case.content), **case.options)
    refused = {row.origin.line: row.reason for row in rows if isinstance(row, BadRow)}
    assert set(refused) == set(case.lines)
    for line, words in case.lines.items():
        assert words in refused[line]
    assert tuple(row.origin.line for row in rows if isinstance(row, Row)) == case.good
    assert {row.origin.file for row in rows} == {case.file}


@dataclass
class Broken:
    """A file that is refused as a whole: where, and words of what is said and of the fix."""

    file: str
    content: bytes
    where: str
    what: str
    fix: str = ""
    options: dict = field(default_factory=dict)


def broken(file, content, where, what, fix="", **options):
    return Broken(file, content.encode() if isinstance(content, str) else content, where, what, fix, options)


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


WHOLE = GOOD.encode() * 50_000
GZ = gzip.compress(json.dumps([{"n": i, "h": hash((i, 7))} for i in range(5000)]).encode())
ZST = zstandard.compress(b"".join(b'{"n": %d}\n' % (i * 7919) for i in range(20_000)))
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
FILES = {
    "gbk": broken("a.csv", CHINESE.encode("gbk"), "a.csv:2", "byte 15 (0xc4) is not UTF-8", "`encoding: gbk`"),
    "gbk in gz": broken("a.csv.gz", gzip.compress(CHINESE.encode("gbk")), "a.csv.gz:2", "byte 15", "`encoding: gbk`"),
    "gb18030": broken(
        "a.txt", ("他们说𠀀是一个很少见的字" * 3).encode("gb18030"), "a.txt:1", "byte 0", "`encoding: gb18030`"
    ),
    "big5": broken("a.txt", TAIWAN.encode("big5"), "a.txt:1", "byte 0", "`encoding: big5`"),
    "shift_jis": broken("a.txt", JAPANESE.encode("shift_jis"), "a.txt:1", "byte 0", "`encoding: shift_jis`"),
    "cp1252": broken("a.txt", "ok\n" + "", "a.txt:2", "byte 8 (0xfc)", "`encoding: cp1252`"),
    "utf-16": broken("a.jsonl", GOOD.encode("utf-16"), "a.jsonl:1", "UTF-8", "`encoding: utf-16`"),
    "utf-16 without a mark": broken("a.jsonl", GOOD.encode("utf-16-le"), "a.jsonl:1", "NUL", "`encoding: utf-16-le`"),
    "one broken byte": broken(
        "a.txt", "一\n二三四\n".encode() + b"\xff" + "五六七".encode(), "a.txt:3", "byte 14", "iconv"
    ),
    "cut inside a character": broken("a.txt", "一\n二".encode()[:-1], "a.txt:2", "byte 4 (0xe4)"),
    "byte far inside": broken("a.txt", b"line\n" * 40_000 + b"\xe9t\xe9 \n", "a.txt:40001", "byte 200000", "cp1252"),
    "utf-8 called gbk": broken(
        "a.txt", "一二三。！".encode(), "a.txt:1", "not GBK", "leave `encoding` out", encoding="gbk"
    ),
    "gzip named .jsonl": broken("a.jsonl", gzip.compress(WHOLE), "a.jsonl:1", "UTF-8", "let its name end in `.gz`"),
    "zstd named .jsonl": broken("a.jsonl", ZST, "a.jsonl:1", "UTF-8", "let its name end in `.zst`"),
    "parquet named .json": broken("a.json", parquet(pa.table({"a": [1]})), "a.json:1", "UTF-8", "`container: parquet`"),
    "text named .gz": broken("a.jsonl.gz", GOOD, "a.jsonl.gz", "damaged gzip", "rename"),
    "cut gz": broken("a.json.gz", GZ[: len(GZ) // 2], "a.json.gz", "cut off", "again"),
    "gz with flipped bits": broken("a.json.gz", GZ[:-8] + b"\0" * 8, "a.json.gz", "damaged gzip"),
    "text named .zst": broken("a.jsonl.zst", GOOD, "a.jsonl.zst", "damaged zstd", "rename"),
    "cut zst": broken("a.jsonl.zst", ZST[: len(ZST) // 2], "a.jsonl.zst", "cut off", "again"),
    "empty jsonl": broken("a.jsonl", "", "a.jsonl", "the file is empty"),
    "empty json": broken("a.json", "", "a.json", "the file is empty"),
    "empty csv": broken("a.csv", "", "a.csv", "the file is empty"),
    "empty txt": broken("a.txt", "", "a.txt", "the file is empty"),
    "empty gz": broken("a.jsonl.gz", gzip.compress(b""), "a.jsonl.gz", "the file is empty"),
    "byte-order mark only": broken("a.txt", "\ufeff", "a.txt", "white space"),
    "white space in jsonl": broken("a.jsonl", " \n\n\t\n", "a.jsonl", "white space"),
    "white space in json": broken("a.json", "\n \n", "a.json", "white space"),
    "white space in csv": broken("a.csv", "\r\n\r\n", "a.csv", "white space"),
    "empty list": broken("a.json", "[]", "a.json", "no rows"),
    "header only": broken("a.csv", "q,a\n", "a.csv", "no rows"),
    "parquet without rows": broken(
        "a.parquet", parquet(pa.table({"a": pa.array([], pa.string())})), "a.parquet", "no rows"
    ),
    "html": broken("a.jsonl", "<!DOCTYPE html>\n<html>\n", "a.jsonl:1", "not JSON", "container"),
    "html named .json": broken("a.json", "\n<html>\n", "a.json:1", "not JSON", "container"),
    "lfs pointer": broken("a.json", LFS, "a.json:1", "Git LFS pointer", "git lfs pull"),
    "lfs pointer jsonl": broken("a.jsonl", LFS, "a.jsonl:1", "Git LFS pointer", "git lfs pull"),
    "lfs pointer parquet": broken("a.parquet", LFS, "a.parquet", "not a readable parquet file", "again"),
    "cut list": broken("a.json", '[{"a": 1},\n{"a": 2}', "a.json:2", "before the closing ']'", "mend"),
    "list cut in an element": broken("a.json", '[{"a": 1},\n{"a": "x', "a.json:2", "breaks off"),
    "list with a missing comma": broken("a.json", '[{"a": 1}\n{"a": 2}]', "a.json:2", "',' or ']' expected"),
    "list with a trailing comma": broken("a.json", '[{"a": 1},\n]', "a.json:2", "not JSON"),
    "damage inside a list": broken(
        "a.json", '[{"a": 1},\n{"a": 2},\n{"a" 3},\n{"a": 4}, {"aaaaaaaaaaaaaaaaa": 5}]', "a.json:3", "':'"
    ),
    "content after the list": broken("a.json", '[{"a": 1}\n]\n[{"a": 2}]', "a.json:3", "more content"),
    "wrapped rows": broken(
        "a.json", '{"meta": 1, "examples": [{"a": 1}]}', "a.json", "one JSON object", "rows: examples"
    ),
    "wrapped rows, several lines": broken(
        "a.json", '{\n"data": [\n{"a": 1}\n]\n}', "a.json", "one JSON object", "rows: data"
    ),
    "object of objects": broken("a.json", '{"1": {"a": 1},\n "2": {"a": 2}}', "a.json", "one JSON object", 'rows: "*"'),
    "object of nothing": broken("a.json", '{"a": 1}', "a.json", "one JSON object", "container: jsonl"),
    "no such rows": broken(
        "a.json", '{"exmples": []}', "a.json", "no key 'examples'", "'exmples'", columns={"rows": "examples"}
    ),
    "rows is no list": broken("a.json", '{"x": {}}', "a.json:1", "holds no list", columns={"rows": "x"}),
    "rows of a list": broken(
        "a.json", '[{"a": 1}]', "a.json", "holds a list", "leave `rows` out", columns={"rows": "x"}
    ),
    "cut object of rows": broken("a.json", '{"x": [{"a": 1}],\n', "a.json:2", "breaks off", columns={"rows": "x"}),
    "a number in a .json": broken("a.json", "5\n", "a.json", "the number 5 where a list", container="json"),
    "jsonl called json": broken(
        "a.jsonl", GOOD + GOOD, "a.jsonl:2", "more content", "`container: jsonl`", container="json"
    ),
    "objects with commas": broken("a.json", '{"a": 1},\n{"a": 2}\n', "a.json:1", "more content", "`container: jsonl`"),
    "repeated header name": broken("a.csv", "q,a,q\n1,2,3\n", "a.csv:1", "the name 'q' twice", "rename"),
    "unnamed header column": broken("a.csv", ",q,a\n0,1,2\n", "a.csv:1", "column 1 of the header", "index=False"),
    "numbers as header": broken("a.csv", "3.5,7\n1,2\n", "a.csv:1", "looks like data", "header"),
    "prose as header": broken("a.tsv", "w" * 201 + "\tb\n1\t2\n", "a.tsv:1", "looks like data", "header"),
    "header with a broken quote": broken("a.csv", '"q"x,a\n1,2\n', "a.csv:1", "header cannot be read"),
    "semicolons": broken("a.csv", "q;a\n1;2\n", "a.csv:1", "separated by ';'"),
    "tabs in a csv": broken("a.csv", "q\ta\n1\t2\n", "a.csv:1", "separated by '\\t'", "container"),
    "open quote": broken("a.csv", 'q,a\n1,x\n2,"open\n3,y\n', "a.csv:3", "never closed", "tsv"),
    "old Mac line ends": broken("a.txt", "one\rtwo\rthree\r", "a.txt:1", "carriage returns", "tr"),
    "damaged parquet": broken("a.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", "a.parquet", "not a readable parquet"),
    "cut parquet": broken("a.parquet", parquet(pa.table({"a": list(range(1000))}))[:-20], "a.parquet", "parquet"),
    "damaged arrow": broken("a.arrow", b"ARROW1\0\0" + b"x" * 50, "a.arrow", "not a readable arrow"),
    "damaged arrow stream": broken("a.arrow", b"\xff" * 40, "a.arrow", "no end mark"),
    "unknown suffix": broken("a.dat", GOOD, "a.dat", "does not tell", "container"),
}
FILES["cp1252"].content = b"ok\n" + b"und M" + GERMAN[5:].encode("cp1252")


@pytest.mark.parametrize("name", FILES)
def test_a_broken_container_is_refused_as_a_whole(name, tmp_path):
    case = FILES[name]
    write(tmp_path, case.file, case.content)
    with pytest.raises(DataError) as caught:
        read(tmp_path, case.file, **case.options)
    problem = caught.value.problems[0]
    assert caught.value.exit_code == 3
    assert problem.where == case.where
    assert case.what in problem.what
    assert case.fix in problem.fix
    assert problem.fix


def test_repeated_parquet_columns_are_refused(tmp_path):
    table = pa.table([pa.array(["x"]), pa.array(["y"])], names=["a", "a"])
    with pytest.raises(DataError, match="'a' stands twice"):
        read(tmp_path, write(tmp_path, "a.parquet", parquet(table)))


def test_rows_before_a_cut_are_read_and_the_cut_is_still_told(tmp_path):
    data = gzip.compress(b"".join(b'{"n": %d}\n' % (i * 7919) for i in range(50_000)))
    rows = iter_rows(Source(write(tmp_path, "a.jsonl.gz", data[:-100])), 0, tmp_path)
    assert next(rows).value == {"n": 0}
    with pytest.raises(DataError, match="cut off"):
        list(rows)


@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "stream.arrow"])
def test_no_cut_table_is_read_as_if_it_were_whole(name, tmp_path):
    kinds = {"file.arrow": pa.ipc.new_file, "stream.arrow": pa.ipc.new_stream}
    data = arrow(kinds[name]) if name in kinds else parquet(pa.table({"a": ["x", "y"]}))
    for end in range(len(data)):
        with pytest.raises(DataError):
            read(tmp_path, write(tmp_path, name, data[:end]))
