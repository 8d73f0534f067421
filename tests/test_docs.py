"""The documents say what is true: commands and options exist, links lead somewhere, recipes load, examples work."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.main import get_command

from tunekit.cli.app import app
from tunekit.core.registry import FORMATS, METHODS
from tunekit.data.detect import detect
from tunekit.recipe.document import parse
from tunekit.recipe.load import check
from tunekit.recipe.reference import reference

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
# click's own, or that of the copy which newer releases of typer carry
WrongUsage = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def blocks(text, *languages):
    return [body for language, body in FENCE.findall(text) if language in languages]


def prose(text):
    return FENCE.sub("", text)


def anchors(text):
    """The ids that headings get on code hosts: lower case, punctuation gone, hyphens for spaces."""
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(prose(text)))
    return {heading.strip().replace(" ", "-") for heading in kept}


def in_blocks():
    """Every tunekit command of the code blocks, with its page."""
    for name, text in TEXTS.items():
        for body in blocks(text, "bash", "sh", "console"):
            for line in body.splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words[:1] == ["tunekit"]:
                    yield name, until_shell(words[1:])


def in_prose():
    """Every command in running text and tables; it may be cut short (`tunekit data cache`)."""
    for name, text in TEXTS.items():
        for span in re.findall(r"`tunekit ([^`]+)`", prose(text)):
            yield name, until_shell(shlex.split(span))


def until_shell(words):
    """The words before a redirection or a pipe."""
    end = next((i for i, word in enumerate(words) if word in (">", "|", "&&")), len(words))
    return words[:end]


ROOT_COMMAND = get_command(app)


def faults(words, *, whole):
    """What is wrong with a command line, without running it: no such command, no such option, a missing argument."""
    command, context = ROOT_COMMAND, typer.Context(ROOT_COMMAND, info_name="tunekit")
    while isinstance(command, TyperGroup) and words and not words[0].startswith("-"):
        name, *words = words
        if name not in command.commands:
            return f"no command '{name}' in '{context.command_path}'"
        command = command.commands[name]
        context = typer.Context(command, info_name=name, parent=context)
    if whole and isinstance(command, TyperGroup) and not words:
        return f"'{context.command_path}' is not a whole command"
    try:
        if whole and not isinstance(command, TyperGroup):
            command.make_context(context.info_name, list(words), parent=context.parent)
        else:
            command.make_parser(context).parse_args(list(words))
    except WrongUsage as error:
        return error.format_message()
    return None


def test_the_recipe_reference_is_the_schemas():
    assert TEXTS["docs/recipe.md"] == reference(), "python -m tunekit.recipe.reference > docs/recipe.md"


def test_the_commands_of_code_blocks_exist():
    found = list(in_blocks())
    assert len(found) > 20
    assert [(page, words, fault) for page, words in found if (fault := faults(words, whole=True))] == []


def test_the_commands_in_running_text_exist():
    found = list(in_prose())
    assert len(found) > 10
    assert [(page, words, fault) for page, words in found if (fault := faults(words, whole=False))] == []


WRONG = ("sfft r.yaml", "data cache wy r.yaml", "sft r.yaml --proceses 2", "plan", "sft r.yaml -n two", "data")


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_command_is_noticed(line):
    assert faults(line.split(), whole=True)


def test_every_command_stands_in_the_readme():
    def leaves(command, path):
        if not isinstance(command, TyperGroup):
            return [path]
        return [leaf for name, inner in command.commands.items() for leaf in leaves(inner, (*path, name))]

    pages = "\n".join(TEXTS.values())
    for path in leaves(get_command(app), ()):
        assert f"tunekit {' '.join(path)}" in pages, path
    shown = set(re.findall(r"^\| \[`([\w ]+)`\]", TEXTS["README.md"], re.MULTILINE))
    rows = {" ".join(path[:2]) for path in leaves(get_command(app), ())}
    assert shown == rows


def test_relative_links_lead_somewhere():
    lost = []
    for name, text in TEXTS.items():
        for link in LINK.findall(prose(text)):
            if re.match(r"[a-z]+:", link):
                continue
            target, _, anchor = link.partition("#")
            path = (ROOT / name).parent / target if target else ROOT / name
            if not path.exists():
                lost.append((name, link))
            elif anchor and anchor not in anchors(path.read_text(encoding="utf-8")):
                lost.append((name, f"{link}: no such heading"))
    assert lost == []


EXAMPLE_METHOD = "src/tunekit/methods/sft_pull.py"


def test_named_files_of_the_repository_exist():
    named = [
        (name, path)
        for name, text in TEXTS.items()
        for path in re.findall(r"`((?:src|tests|recipes|benchmarks|\.ci)/[\w./-]*)`", text)
        if path != EXAMPLE_METHOD
    ]
    assert len(named) > 10
    assert [(name, path) for name, path in named if not (ROOT / path).exists()] == []


RECIPES = [
    (name, body)
    for name, text in TEXTS.items()
    for body in blocks(text, "yaml", "yml")
    if {"data", "model"} <= parse(body, name).value.keys()
]


@pytest.mark.parametrize(("name", "body"), RECIPES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(RECIPES)])
def test_a_recipe_in_the_docs_loads(name, body):
    check(parse(body, name))


def test_there_are_recipes_in_the_docs():
    assert {name for name, _ in RECIPES} >= {"README.md", "docs/sft.md", "docs/pretrain.md", "docs/data.md"}


FORMAT_ROWS = re.findall(r"^### `(\w+)`\n\n```json\n(.*?)\n```$", TEXTS["docs/data.md"], re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("name", "row"), FORMAT_ROWS)
def test_an_example_row_has_the_format_it_stands_under(name, row):
    assert detect([json.loads(row)], None, FORMATS.load(name).GIVES) == name


def test_every_format_has_an_example_row():
    assert {name for name, _ in FORMAT_ROWS} == set(FORMATS.names)


def test_the_example_method_is_complete(tmp_path):
    """The README's method, put where methods lie, is a command; its template is a recipe that loads."""
    (source,) = [body for body in blocks(TEXTS["README.md"], "python") if "def build(" in body]
    (tmp_path / "sft_pull.py").write_text(source, encoding="utf-8")
    program = """
import sys
import tunekit.methods
tunekit.methods.__path__.append(sys.argv.pop(1))
from tunekit.cli.app import main
main()
"""

    def run(*words):
        command = [sys.executable, "-c", program, str(tmp_path), *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert "sft_pull" not in METHODS.names
    assert "sft_pull" in run("--help").stdout
    made = run("init", "sft_pull", "-o", "pull.yaml")
    assert made.returncode == 0, made.stderr
    load = (
        "import pathlib, sys, tunekit.methods; tunekit.methods.__path__.append(sys.argv[1]);"
        "from tunekit.recipe.load import load; print(load(pathlib.Path('pull.yaml')).options.pull)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", load, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert loaded.stdout == "0.001\n", loaded.stderr
    refused = run("sft_pull", "pull.yaml", "--set", "sft_pull.pul=1")
    assert refused.returncode == 2 and "did you mean 'pull'?" in refused.stderr


def test_nothing_of_a_machine_is_in_the_docs():
    private = re.compile(r"(?<![\w.])/(?:work|root|home|tmp|Users)/")
    assert [(name, found.group()) for name, text in TEXTS.items() for found in private.finditer(text)] == []


def test_resume_page_lists_every_rule_of_changes():
    from tunekit.plan.changes import table

    words = {"harmless": "free", "allowed": "by name", "fixed": "not"}
    rows = [line for line in TEXTS["docs/resume.md"].splitlines() if line.startswith("| `")]
    for key, kind, why in table():
        assert any(f"`{key}`" in row and f"| {words[kind]} | {why} |" in row for row in rows), (key, kind)
