"""What docs/eval.md shows works: its files are evaluated as they stand, its tables are the code's; recipes/eval too."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from typer.main import get_command

from tunekit.core.registry import ENGINES, METRICS, TASKS
from tunekit.exam import reference
from tunekit.exam.recipe import check, load
from tunekit.recipe.document import parse

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "eval.md").read_text(encoding="utf-8")
METRICS_PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
WRITE = "python -m tunekit.exam.reference docs/metrics.md docs/eval.md"
NAMED = dict(re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
YAML = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
BLOCKS = [body for body in YAML if body not in NAMED.values()]
WHOLE = sorted(name for name, body in NAMED.items() if name.endswith(".yaml") and "tasks:\n" in body)
RECIPES = sorted((ROOT / "recipes" / "eval").rglob("*.yaml"))

TURNS = [{"from": "human", "value": "How are you?"}]
ROWS = {
    "gsm8k_test.jsonl": [{"question": "2 + 3?", "answer": "#### 5"}],
    "piqa_valid.jsonl": [{"goal": "To eat soup,", "sol1": "use a spoon.", "sol2": "use a comb."}] * 2,
    "dpo.json": [{"conversations": TURNS, "chosen": {"from": "gpt", "value": "Fine."},
                  "rejected": {"from": "gpt", "value": "Go."}}],
    "mt_bench_question.jsonl": [{"turns": ["Tell me of Hawaii.", "Shorter."]}],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the page's files; answers are kept there."""
    for name, body in NAMED.items():
        (tmp_path / name).write_text(body, encoding="utf-8")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def data(folder):
    """Rows of the form that the recipes expect, and the folder for the recipes."""
    (folder / "data").mkdir()
    for name, rows in ROWS.items():
        whole = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "data" / name).write_text(whole)
    (folder / "data" / "piqa_valid_labels.lst").write_text("0\n0\n")
    (folder / "data" / "sms_spam.tsv").write_text("Label\tSMS\nham\tSee you.\nspam\tYou won!\nham\tOk.\n")
    return folder


def run(path, *overrides):
    """Evaluates the embedded model, and nothing beside it."""
    from tunekit.core.progress import Silent
    from tunekit.exam.job import Job

    exam = load(path, ["model=builtin:tiny", "baseline=null", *overrides])
    return Job(exam, path.parent, Path("evaluation"), Silent()).run()


def test_the_tables_are_the_codes():
    assert reference.metrics_page() == METRICS_PAGE, WRITE
    assert reference.filled(PAGE) == PAGE, WRITE


def test_a_table_that_is_not_the_codes_is_noticed():
    changed = PAGE.replace("| `max_new_tokens` | whole number (>= 1) | `64` |", "| `max_new_tokens` | any | `65` |", 1)
    assert changed != PAGE and reference.filled(changed) == PAGE
    with pytest.raises(KeyError):
        reference.filled("<!-- keys of task nothing -->\n<!-- end -->")


def test_everything_has_its_place():
    told = set(re.findall(r"<!-- keys of (.+?) -->", PAGE))
    assert told == set(reference._blocks())
    assert set(re.findall(r"^### `(\w+)`$", PAGE, re.MULTILINE)) == set(TASKS.names)
    assert f"{len(METRICS.names)} metrics" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` | {METRICS.help(name)} |" in METRICS_PAGE for name in METRICS.names)
    assert all(f"| `{name}` |" in PAGE for name in ENGINES.names)


def test_a_default_that_is_a_list_stands_in_its_table():
    assert "| `seeds` | list of (whole number) | `[0]` |" in PAGE


def test_every_option_is_told():
    from tunekit.cli.app import app

    command = get_command(app).commands["eval"]
    options = {name for parameter in command.params for name in parameter.opts if name.startswith("--")}
    assert options - {"--help"} - set(re.findall(r"`(--[\w-]+)", PAGE)) == set()


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_of_the_page_is_evaluated(name, folder):
    record = run(folder / name)
    assert record.tasks and all(math.isfinite(task.tuned.value) for task in record.tasks)
    rows = NAMED[name.replace("yaml", "jsonl") if name != "harness.yaml" else "sums.jsonl"]
    assert {task.n for task in record.tasks} == {rows.count("\n")}


def test_every_kind_of_task_is_shown_and_all_but_the_judge_are_run(folder):
    kinds = {task.kind for name in WHOLE for task in load(folder / name, ["model=builtin:tiny"]).tasks}
    assert kinds == set(TASKS.names) - {"judge"}


@pytest.mark.parametrize("body", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_of_the_page_is_a_recipe(body, folder):
    value = parse(body, "docs/eval.md").value
    if "metrics" in value:
        value = {"tasks": [{"kind": "generation"} | value]}
    exam = check(parse(json.dumps({"model": "builtin:tiny"} | value), "docs/eval.md"), folder)
    for task in exam.tasks or ():
        for wish in getattr(task, "metrics", ()):
            METRICS.load(wish if isinstance(wish, str) else next(iter(wish)))


def test_the_kept_answers_lie_where_it_says(folder):
    from tunekit.exam.answers import kept_answers

    run(folder / "capitals.yaml")
    assert "`$HF_HOME/tunekit/answers`" in PAGE
    assert kept_answers() == folder / "cache" / "tunekit" / "answers" and list(kept_answers().glob("*.sqlite"))
    assert sorted(path.name for path in Path("evaluation").iterdir()) == sorted(
        name for name in ("report.html", "report.md", "results.parquet", "record.json") if f"| `{name}` |" in PAGE
    )


def test_there_are_recipes():
    assert {path.stem for path in RECIPES} >= {"quickstart", "gsm8k", "piqa", "judge", "harness", "server"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_its_rows_are_read(path, data, monkeypatch):
    from tunekit.core.progress import Silent
    from tunekit.exam import session
    from tunekit.exam.tasks import tasks_of

    monkeypatch.setenv("JUDGE_KEY", "secret")
    (data / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    exam = load(data / path.name, [])
    tasks = tasks_of(exam)
    reader = session.Reader(data, None, exam.max_drop_rate, Silent())
    for task in tasks:
        if task.module.READS == "rows":
            session.check([task], [reader.items(task, None)])
    assert len(path.read_text().splitlines()) <= 40


@pytest.mark.parametrize("name", ["quickstart", "piqa", "spam", "preference", "gsm8k"])
def test_a_recipe_is_evaluated(name, data):
    path = data / f"{name}.yaml"
    path.write_text((ROOT / "recipes" / "eval" / path.name).read_text(encoding="utf-8"), encoding="utf-8")
    short = {"quickstart": ["limit=20"], "gsm8k": ["tasks.0.max_new_tokens=8"]}
    record = run(path, *short.get(name, ()))
    assert record.tasks and all(math.isfinite(task.tuned.value) for task in record.tasks)
