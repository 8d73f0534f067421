"""quantize is killed at every call to the file system: what stands at the target is nothing, or whole; and what a
killed run leaves beside it is gone after the next one."""

from __future__ import annotations

import shutil
import signal
import sys

import pytest
from kills_for_tests import TRAIN, Server

from tunekit.model.artefact import verify
from tunekit.model.names import TINY
from tunekit.model.save import sweep

pytestmark = pytest.mark.slow
QUICK = ("--set=proof.rows=2", "--set=proof.answers=0", "--quiet")
WHOLE = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
         "chat_template.jinja", "quantize.json", "MANIFEST.json", "README.md"}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    sys.path.insert(0, str(TRAIN))
    from crash_for_tests import build_shim

    sys.path.remove(str(TRAIN))
    home = tmp_path_factory.mktemp("server")
    shim = build_shim(home)
    if shim is None:
        pytest.skip("no C compiler: the shim that counts and kills cannot be built")
    server = Server(home, shim)
    server.warm(["quantize", TINY, "--to", "bfloat16", "-o", home / "warm", *QUICK])
    yield server
    server.close()


@pytest.fixture
def place(tmp_path):
    """A folder for the target, beside which the source does not lie: all calls in it are the target's."""
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def argv(place, kinds):
    return ["quantize", place.parent / "model", "--to", kinds, "-o", place / "small", *QUICK]


def calls_of(server, place, kinds):
    """Every call of a whole run: (number, what, bytes, path below the place)."""
    log = place.parent / "calls.tsv"
    assert server.run(argv(place, kinds), place, log=log) == 0, server.said()
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    shutil.rmtree(place / "small")
    assert list(place.iterdir()) == []
    return [(int(n), what, int(size), path) for n, what, size, path in lines]


def kills(calls):
    """Before every call; in the middle of every write; and after those of safetensors, whose rename is not seen."""
    for number, what, size, path in calls:
        yield number, "before"
        if "write" in what and size > 1:
            yield number, "torn"
        if "write" in what and "/.tmp" in path:
            yield number, "after"


def names(folder):
    return {path.name for path in folder.iterdir()}


def whole(folder):
    """Whether an artefact is there; half of one is an error."""
    if not folder.exists():
        return False
    assert verify(folder)["quantized"] == folder.name.replace("small", "bfloat16")
    kept = {name for name in names(folder) if not name.startswith(".report.html.")} - {"report.html"}
    assert kept == WHOLE
    return True


def test_one_kind(server, place):
    """Every call and the middle of every write; the next run to the same target sweeps the leftovers."""
    calls, found = calls_of(server, place, "bfloat16"), {True: 0, False: 0}
    renames = [number for number, what, _, path in calls if what.startswith("rename") and path.endswith("/small")]
    assert len(renames) == 1, "the whole folder gets its name in one step"
    assert sum(size for _, what, size, _ in calls if "write" in what) > 4_000_000, "the weights pass the shim too"
    points = list(kills(calls))
    for number, mode in points:
        code = server.run(argv(place, "bfloat16"), place, n=number, mode=mode)
        assert code == -signal.SIGKILL, (number, server.said())
        there = whole(place / "small")
        assert there == (number > renames[0]), (number, mode)
        found[there] += 1
        left = names(place) - {"small"}
        assert len(left) <= 1 and all(name.startswith(".small.") for name in left), (number, mode, left)
        assert there == (not left) or number <= 2, (number, mode, left)
        sweep(place / "small")
        assert names(place) <= {"small"}, (number, mode)
        shutil.rmtree(place / "small", ignore_errors=True)
    print(f"measured: {len(calls)} calls, {len(points)} kills: {found[False]} left nothing, {found[True]} all of it")
    assert found[True] and found[False] > 40


def test_the_next_run_leaves_nothing_but_its_own(server, place):
    calls = calls_of(server, place, "bfloat16")
    (last,) = [number for number, what, _, path in calls if what.startswith("rename") and path.endswith("/small")]
    for number in (last // 3, last):
        assert server.run(argv(place, "bfloat16"), place, n=number) == -signal.SIGKILL, server.said()
    assert len(names(place)) == 1, "the first one's went with the second"
    assert server.run(argv(place, "bfloat16"), place) == 0, server.said()
    assert names(place) == {"small"} and whole(place / "small")


def test_of_several_kinds_those_are_whole_that_are_there(server, place):
    """Killed at every call that gives something its name, and before what comes after it."""
    calls = calls_of(server, place, "bfloat16,float16")
    named = sorted({n for number, what, *_ in calls if what.startswith("rename") for n in (number, number + 1)})
    seen = set()
    for number in named:
        code = server.run(argv(place, "bfloat16,float16"), place, n=number)
        assert code == -signal.SIGKILL or number > len(calls), (number, server.said())
        there = tuple(kind for kind in ("bfloat16", "float16") if whole(place / "small" / kind))
        seen.add(there)
        for kind in ("bfloat16", "float16"):
            sweep(place / "small" / kind)
        assert names(place) <= {"small"}
        if (place / "small").exists():
            left = {name for name in names(place / "small") if not name.startswith(".report")}
            assert left <= {*there, "report.html"}
            shutil.rmtree(place / "small")
    assert seen == {(), ("bfloat16",), ("bfloat16", "float16")}
