import json
import resource
import subprocess
import sys

import pytest
from malformed_for_tests import GOOD, OVERRIDES, RECIPES

from tunekit.core.errors import UserError
from tunekit.recipe.load import load

HEAVY = ("torch", "transformers", "datasets", "peft", "trl", "accelerate", "pyarrow", "numpy")
THROUGH_THE_COMMAND = (
    "text for a whole number", "unknown key, depth 4", "too large", "everything at once", "unknown method", "no data",
    "extra: a typo", "duplicate key", "tab", "python object", "alias bomb", "larger than 1 MB", "not UTF-8", "empty",
)  # fmt: skip
PROGRAM = f"""
import json, sys
from tunekit.cli.app import app
try:
    app(sys.argv[1:])
finally:
    print(json.dumps([name for name in {HEAVY} if name in sys.modules]))
"""


def written(folder, content):
    path = folder / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def problems_of(path, **options):
    with pytest.raises(UserError) as caught:
        load(path, **options)
    assert caught.value.exit_code == 2
    return caught.value.problems


def assert_place(found, path, place):
    """``place`` is ``line:column``; ``line:`` leaves the column open; nothing means the file as a whole."""
    if place.endswith(":"):
        assert found.startswith(f"{path}:{place}")
    else:
        assert found == (f"{path}:{place}" if place else str(path))


@pytest.mark.parametrize("name", RECIPES)
def test_malformed_recipes_are_refused_with_their_places(tmp_path, name):
    content, expected = RECIPES[name]
    path = written(tmp_path, content)
    problems = problems_of(path)
    assert len(problems) == len(expected), problems
    for problem, (place, what, hint) in zip(problems, expected, strict=True):
        assert_place(problem.where, path, place)
        assert what in problem.what
        assert hint in problem.fix


@pytest.mark.parametrize("name", OVERRIDES)
def test_malformed_overrides_are_refused_like_the_file(tmp_path, name):
    assignment, place, what, hint = OVERRIDES[name]
    path = written(tmp_path, GOOD + "launch: {processes: 2}\n")
    (problem,) = problems_of(path, overrides=[assignment])
    assert problem.where == place
    assert what in problem.what
    assert hint in problem.fix


def test_problems_of_overrides_and_file_come_together(tmp_path):
    path = written(tmp_path, GOOD + "train: {seed: -1}\n")
    problems = problems_of(path, overrides=["train.epochs=0", "modle.name=x"])
    assert [p.where for p in problems] == ["--set train.epochs", "--set modle.name", f"{path}:3:15"]


def test_an_override_mends_the_file(tmp_path):
    path = written(tmp_path, GOOD + "train: {seed: -1}\n")
    assert load(path, overrides=["train.seed=1"]).train.seed == 1


def test_of_several_adapter_kinds_each_has_its_own_keys_and_ranges(tmp_path):
    ranged = "'adapter.r' must be >= 1 and <= 4096; it is"
    adapters = {
        "{kind: ia3, r: 99}": ["unknown key 'adapter.r'"],
        "{kind: lora, r: 0, alhpa: 3}": [f"{ranged} 0", "unknown key 'adapter.alhpa'"],
        "{kind: lora, lora: {r: 8}, r: -1}": ["unknown key 'adapter.lora'", f"{ranged} -1"],
    }
    for adapter, expected in adapters.items():
        path = written(tmp_path, f"method: sft\ndata: {{train: [{{path: a}}]}}\nadapter: {adapter}\n")
        assert [problem.what for problem in problems_of(path)] == expected


def test_the_command_must_be_that_of_the_recipe(tmp_path):
    path = written(tmp_path, GOOD)
    (problem,) = problems_of(path, method="pretrain")
    assert problem.what == "this recipe is for `sft`, the command is `pretrain`"
    assert problem.where == f"{path}:1:9"
    assert problem.fix == f"run `tunekit sft {path}`"


def test_files_that_are_no_recipes(tmp_path):
    written(tmp_path, GOOD)
    (missing,) = problems_of(tmp_path / "recepie.yaml")
    assert missing.what == "there is no such recipe"
    assert str(tmp_path / "recipe.yaml") in missing.fix
    (elsewhere,) = problems_of(tmp_path / "nowhere" / "recipe.yaml")
    assert "tunekit init" in elsewhere.fix
    (folder,) = problems_of(tmp_path)
    assert folder.what == "this is a folder, not a recipe"


@pytest.mark.parametrize("name", THROUGH_THE_COMMAND)
def test_the_command_refuses_at_once_and_without_heavy_imports(tmp_path, name):
    content, expected = RECIPES[name]
    path = written(tmp_path, content)
    done, seconds = refused(path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: cannot start\n")
    for place, what, hint in expected:
        assert what in done.stderr
        assert hint in done.stderr
        assert f"at:  {path}{':' if place else ''}{place}" in done.stderr
    assert json.loads(done.stdout) == []
    assert seconds < 1.0 or min(refused(path)[1] for _ in range(2)) < 1.0  # of the processor
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


def refused(path):
    """Runs `tunekit sft`; returns the finished process and its seconds of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", PROGRAM, "sft", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.parent, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_the_check_of_imports_sees_them():
    program = PROGRAM.replace("from tunekit.cli.app import app", "import numpy\nfrom tunekit.cli.app import app")
    done = subprocess.run([sys.executable, "-c", program, "--version"], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout.splitlines()[-1]) == ["numpy"]
