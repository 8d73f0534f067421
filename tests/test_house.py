import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import house_for_tests as house
import tunekit
from house_for_tests import Module
from tunekit.core import registry
from tunekit.core.registry import Registry
from tunekit.recipe.load import load

SRC = Path(tunekit.__file__).parents[1]
RECIPES = SRC.parent / "recipes"


@cache
def source():
    """Every module of tunekit."""
    found = []
    for path in sorted((SRC / "tunekit").rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        found.append(Module(".".join(part for part in parts if part != "__init__"), path.read_text(encoding="utf-8")))
    return found


def planted(**files):
    return [Module(name.replace("__", "."), text) for name, text in files.items()]


COPY = "\n".join(f"x{i} = {i}" for i in range(6)) + "\n"
FAULTS = [
    (house.layers, {"tunekit__core__a": "from tunekit.recipe import load"}, "tunekit.core.a imports tunekit.recipe"),
    (house.layers, {"tunekit__data__a": "def f():\n    import tunekit.model.load"}, "imports tunekit.model.load"),
    (house.layers, {"tunekit__runs__a": "import tunekit.evaluate.run"}, "imports tunekit.evaluate.run"),
    (house.layers, {"tunekit__train__a": "from tunekit.methods.sft import build"}, "imports tunekit.methods.sft"),
    (house.layers, {"tunekit__evaluate__a": "from tunekit.cli.app import app"}, "imports tunekit.cli.app"),
    (house.layers, {"tunekit__cli__a": "from tunekit.train.trainer import x"}, "imports tunekit.train.trainer"),
    (house.layers, {"tunekit__data__a": "if TYPE_CHECKING:\n    import tunekit.model.load"}, "imports tunekit.model"),
    (house.layers, {"tunekit__model__a": "import tunekit.model.builtin.make_tokenizer"}, "imports the script"),
    (
        house.cycles,
        {"tunekit__a": "from tunekit import b", "tunekit__b": "import tunekit.c", "tunekit__c": "import tunekit.a"},
        "tunekit.a -> tunekit.b -> tunekit.c -> tunekit.a",
    ),
    (house.plugins, {"tunekit__methods__dpo": "from tunekit.methods.sft import x"}, "imports the plug-in"),
    (
        house.plugins,
        {"tunekit__data__a": "def f():\n    from tunekit.data.formats import chat", "tunekit__data__formats__chat": ""},
        "tunekit.data.a imports the plug-in tunekit.data.formats.chat",
    ),
    (house.long_files, {"tunekit__a": "x = 1\n" * 301}, "tunekit.a has 301 lines"),
    (house.long_functions, {"tunekit__a": "def f():\n" + "    x = 1\n" * 60}, "tunekit.a.f has 61 lines"),
    (house.bare_names, {"tunekit__a": "x = 1"}, "tunekit.a has no docstring"),
    (
        house.bare_names,
        {"tunekit__a": '"""A."""\nclass B:\n    """B."""\n    def c(self): ...'},
        "tunekit.a.B.c has no",
    ),
    (house.without_annotations, {"tunekit__a": "def f(a: int, *b) -> None: ..."}, "tunekit.a.f lacks types: b"),
    (house.without_annotations, {"tunekit__a": "class A:\n    def f(self): ..."}, "tunekit.a.f lacks types: return"),
    (
        house.without_annotations,
        {"tunekit__a": "def f() -> int:\n    def g(x) -> int: ..."},
        "tunekit.a.g lacks types: x",
    ),
    (house.broad_excepts, {"tunekit__a": "try:\n    f()\nexcept:\n    pass"}, "tunekit.a:3 broad except"),
    (house.broad_excepts, {"tunekit__a": "try:\n    f()\nexcept (ValueError, Exception):\n    x = 1"}, "broad except"),
    (house.broad_excepts, {"tunekit__a": "try:\n    f()\nexcept Exception:\n    raise ValueError"}, "broad except"),
    (house.dangerous, {"tunekit__a": "def f():\n    import pickle"}, "tunekit.a imports pickle"),
    (house.dangerous, {"tunekit__a": "x = torch.load('a')"}, "tunekit.a calls torch.load"),
    (house.dangerous, {"tunekit__a": "eval('1')"}, "tunekit.a calls eval"),
    (house.dangerous, {"tunekit__recipe__extra": "exec('1')"}, "tunekit.recipe.extra calls exec"),
    (house.dangerous, {"tunekit__a": "subprocess.run('ls', shell=True)"}, "shell=True"),
    (house.environment, {"tunekit__a": "x = os.environ.get('TUNEKIT_FAST')"}, "tunekit.a:1 reads the environment"),
    (house.environment, {"tunekit__a": "x = os.environ['HOME']"}, "reads the environment"),
    (house.environment, {"tunekit__a": "x = os.getenv(name)"}, "reads the environment"),
    (house.environment, {"tunekit__a": "os.environ['TOKENIZERS_PARALLELISM'] = '0'"}, "reads the environment"),
    (house.environment, {"tunekit__a": "from os import environ"}, "reads the environment"),
    (house.environment, {"tunekit__a": "x = dict(os.environ)"}, "reads the environment"),
    (house.remote_code, {"tunekit__a": "load(x, trust_remote_code=True)"}, "tunekit.a:1 trusts remote code"),
    (house.remote_code, {"tunekit__a": "load(x, trust_remote_code=wanted)"}, "trusts remote code"),
    (house.heavy_imports, {"tunekit__a": "from torch.nn import Module"}, "tunekit.a imports torch.nn at module level"),
    (house.heavy_imports, {"tunekit__a": "try:\n    import numpy as np\nexcept ImportError: ..."}, "imports numpy"),
    (house.patches, {"tunekit__a": "import torch\ntorch.load = f"}, "tunekit.a:2 patches torch"),
    (house.patches, {"tunekit__a": "from trl import SFTTrainer as T\nT.step = f"}, "patches T"),
    (house.patches, {"tunekit__a": "import trl\nsetattr(trl.SFTTrainer, 'x', f)"}, "patches trl.SFTTrainer"),
    (house.too_much_copied, {"tunekit__a": COPY, "tunekit__b": "y = 1\n" + COPY}, "12 of 13 lines are copied"),
]
CLEAN = {
    "tunekit__methods__new": '"""A method."""\n\ndef build(plan: int, *, x: int = 1) -> int:\n    """Builds."""\n'
    "    import torch\n\n    from tunekit.train.causal import f\n\n    try:\n        return f(torch, plan)\n"
    "    except ValueError:\n        return load(x, trust_remote_code=False)\n    except Exception:\n        raise\n",
    "tunekit__train__new": '"""Train."""\nimport os\n\nfrom tunekit.data.prepare import x\n\n'
    "_RANK = os.environ.get('RANK', '0')\n_HOME = os.environ['HF_HOME']\n",
}


@pytest.mark.parametrize(("rule", "files", "complaint"), FAULTS)
def test_a_rule_fires_on_its_fault(rule, files, complaint):
    assert any(complaint in found for found in rule(planted(**files))), list(rule(planted(**files)))


def test_every_rule_has_a_planted_fault():
    assert {rule for rule, _, _ in FAULTS} == set(house.RULES)


@pytest.mark.parametrize("rule", house.RULES)
def test_no_rule_fires_on_clean_code(rule):
    assert list(rule(planted(**CLEAN))) == []


@pytest.mark.parametrize("rule", house.RULES)
def test_the_house_keeps_its_rules(rule):
    assert list(rule(source())) == []


def test_the_rules_know_every_room_and_every_folder_of_plugins():
    assert {module.room for module in source()} <= set(house.LAYERS)
    kinds = [value for value in vars(registry).values() if isinstance(value, Registry)]
    assert {kind.package for kind in kinds} <= set(house.PLUGINS)
    assert all(kind.names for kind in kinds)


def test_the_lists_of_exceptions_are_not_stale():
    modules = {module.name: module for module in source()}
    heavy = {m.name for m in modules.values() for i in m.imports() if i.when == "module" and i.target in house.HEAVY}
    assert heavy & house.IMPORTED_INSIDE_FUNCTIONS == house.IMPORTED_INSIDE_FUNCTIONS
    for name, target in house.LAYER_EXCEPTIONS:
        assert target in {found.target for found in modules[name].imports()}
    assert all("environ" in modules[name].text for name in house.WHOLE_ENVIRONMENT)
    assert all(f"{call}(" in modules[name].text for name, call in house.DANGEROUS)
    assert all("except Exception" in modules[name].text for name in house.BROAD_EXCEPT)


def test_modules_with_heavy_imports_are_reached_from_functions_only(tmp_path):
    (tmp_path / "r.yaml").write_text("method: sft\ndata: {train: [{path: a}]}\n")
    program = """
import json, pathlib, sys
import tunekit.cli.app, tunekit.plan.plan, tunekit.plan.resolve, tunekit.recipe.load, tunekit.runs.screen
tunekit.recipe.load.load(pathlib.Path(sys.argv[1]))
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "r.yaml")], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stdout))
    assert "tunekit.recipe.extra" in loaded
    assert loaded & house.IMPORTED_INSIDE_FUNCTIONS == set()
    assert loaded & house.HEAVY == set()


def test_the_public_surface_is_pinned():
    assert tunekit.__all__ == ["__version__"]
    program = "import sys, tunekit; print(*(n for n in vars(tunekit) if not n.startswith('_')))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout.strip() == b""


def recipes(folder):
    return sorted(path for path in folder.rglob("*") if path.suffix in (".yaml", ".yml"))


def test_recipes_are_found_in_every_folder(tmp_path):
    for name in ("a.yaml", "b/c.yml", "b/d/e.yaml", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in recipes(tmp_path)] == ["a.yaml", "b/c.yml", "b/d/e.yaml"]


def test_there_are_recipes():
    assert len(recipes(RECIPES)) > 0


@pytest.mark.parametrize("path", recipes(RECIPES), ids=lambda path: str(path.relative_to(RECIPES)))
def test_a_recipe_loads(path):
    if path.parent.name == "eval":  # what they name is there only for their own tests
        from tunekit.recipe.document import read

        assert "model" in read(path).value
    else:
        load(path)
