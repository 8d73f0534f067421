"""The model card: its facts are the run's, the Hub's reader takes it, nothing private is in it, its program runs."""

from __future__ import annotations

import re

import pytest
from huggingface_hub import ModelCard
from runs_for_tests import EVALUATION, RECORD, make_run

from tunekit.core.progress import Silent
from tunekit.plan.hardware import Hardware
from tunekit.plan.resolve import resolve
from tunekit.recipe.document import parse
from tunekit.recipe.load import check
from tunekit.runs.card import Card, write_card
from tunekit.runs.front_matter import front_matter, license_of
from tunekit.runs.layout import RunFolder
from tunekit.runs.record import Record

MACHINE = Hardware(cpu="a processor", cores=2, memory=8 << 30, cpu_bf16=False)
COMMIT = "c1899de289a04d12100db370d81485cdf75e47ca"
RECIPE = """\
method: sft
model: {name: org/base, revision: v1}
adapter: {kind: lora, r: 8, alpha: 4}
data:
  train: [{path: org/talks}, {path: builtin:instructions}]
  max_length: 64
train: {learning_rate: 1.0e-3, seed: 7, precision: fp32, batch_size: 16}
"""


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def card(tmp_path):
    """Writes the card of a hand-made run and returns its text."""

    def make(recipe=RECIPE, hub=("org/base", "org/talks"), *, adapter=True, **changes):
        folder = make_run(tmp_path / "runs" / "x", **changes)
        folder.model.mkdir()
        (folder.model / "chat_template.jinja").touch()
        if adapter:
            (folder.model / "adapter_config.json").touch()
        checked = check(parse(recipe, "recipe.yaml"))
        plan = resolve(checked, tmp_path / "recipe.yaml", MACHINE, str(folder.path))
        record = Record.model_validate(RECORD | changes)
        return write_card(Card(folder, record, plan, frozenset(hub))).read_text(encoding="utf-8")

    return make


def cached(root, kind, name, commit, **files):
    """A repository as the Hub's client keeps it."""
    folder = root / "hub" / f"{kind}--{name.replace('/', '--')}"
    for path, text in {"refs/main": commit, "refs/v1": commit} .items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    (folder / "snapshots" / commit).mkdir(parents=True)
    for path, text in files.items():
        (folder / "snapshots" / commit / path.replace("__", ".")).write_text(text)


def test_the_hub_reads_its_head(card, tmp_path):
    licence = "---\nlicense: other\nlicense_name: base-1\nlicense_link: https://example.org/base-1\n---\n# Base\n"
    cached(tmp_path, "models", "org/base", COMMIT, config__json="{}", README__md=licence)
    head = ModelCard(card()).data
    assert (head.base_model, head.to_dict()["base_model_relation"]) == ("org/base", "adapter")
    assert (head.library_name, head.pipeline_tag) == ("peft", "text-generation")
    assert head.tags == ["tunekit", "sft", "lora"]
    assert (head.license, head.license_name, head.license_link) == ("other", "base-1", "https://example.org/base-1")
    assert head.datasets == ["org/talks"]
    assert head.model_name == "base tuned by sft with lora"
    shown = [(r.task_type, r.metric_type, r.metric_value) for r in head.eval_results]
    assert shown == [("text-generation", "exact_match", 0.584), ("text-generation", "perplexity", 3.127)]


def test_its_facts_are_those_of_the_run(card, tmp_path):
    cached(tmp_path, "models", "org/base", COMMIT, config__json="{}")
    cached(tmp_path, "datasets", "org/talks", COMMIT, README__md="---\nlicense: cc-by-4.0\n---\n")
    text = card()
    for fact in (
        "**It helped: exact match rose from 31.2 % to 58.4 %.**",
        "| exact match | 500 | 31.2 % (27.2–35.4) | 58.4 % (54.0–62.7) | +27.2 (+22.1 to +32.0) | better, p < 0.001 |",
        f"- revision: `v1`, commit `{COMMIT}`",
        "- licence: not known here",
        "- parameters: 606,142,464, trained: 10,092,544",
        "- adapter: `lora`, targets all-linear, r 8, alpha 4",
        "- optimizer: adamw, learning rate 0.001, cosine",
        "- precision: fp32, weights loaded as float32",
        "- seed: 7",
        "- steps: 244 of 16 examples; 1,404,228 trained tokens",
        "- rows: not packed, 1.2 % padding",
        "- versions: tunekit 0.1.0, python 3.11.9, torch 2.11.0",
        "- `org/talks`, licence: cc-by-4.0",
        "- `builtin:instructions`, which is part of tunekit",
        "| train | 4,000 | 3,801 | 96 | 41 | 62 | 0 | 1,820,331 | 702,114 |",
        "`" + "9f2c" * 16 + "`",
        "AutoPeftModelForCausalLM.from_pretrained(folder)",
    ):
        assert fact in text, fact
    shown = text.split("```yaml\n")[1].split("```")[0]
    assert parse(shown, "shown").value == parse(RECIPE, "recipe").value  # what was set, and nothing else


def test_a_whole_model_of_a_local_base(card, tmp_path):
    base = tmp_path / "my models" / "base-7b"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    (base / "README.md").write_text("---\nlicense: apache-2.0\nlicense_link: LICENSE\n---\n")
    recipe = f"method: sft\nmodel: {{name: '{base}'}}\ndata: {{train: [{{path: d/rows.jsonl}}], packing: true}}\n"
    text = card(recipe, (), adapter=False, training=RECORD["training"] | {"padded_because": "the model cannot"})
    head = ModelCard(text).data.to_dict()
    assert (head["library_name"], head["license"]) == ("transformers", "apache-2.0")
    assert not {"base_model", "base_model_relation", "datasets", "license_link"} & set(head)
    assert "- `base-7b`\n- licence: apache-2.0" in text
    assert "- `rows.jsonl`, licence: not known here" in text
    assert "- adapter: none" in text
    assert "- rows: packed, 1.2 % padding; batches were padded: the model cannot" in text
    assert "my models" not in text and "d/rows" not in text


def test_nothing_private_reaches_the_card(card, tmp_path, monkeypatch):
    home = tmp_path / "home" / "ada"
    token = "hf_" + "aB3" * 11  # made up, and not whole in this file
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MY_SECRET", "hunter2-hunter2")
    monkeypatch.setattr("socket.gethostname", lambda: "ada-laptop")
    (home / "acme" / "base").mkdir(parents=True)
    (home / "acme" / "base" / "README.md").write_text(f"---\nlicense: of {token}\n---\n")
    recipe = f"""\
method: sft
model: {{name: {home}/acme/base, tokenizer: ~/acme/base, chat_template: {home}/acme/t.jinja}}
adapter: {{kind: lora, targets: [/mnt/acme/q_proj, hunter2-hunter2]}}
data:
  train: [{{path: ../acme/{token}.jsonl, columns: {{question: on ada-laptop}}}}, {{path: /mnt/acme/rows.csv}}]
train: {{extra: {{accelerator_config: {home}/acme/accelerator.json}}}}
output: {{dir: acme/out}}
"""
    problem = f"{home} on ada-laptop with {token}"
    text = card(recipe, (), training=RECORD["training"] | {"padded_because": problem})
    assert all(word in recipe for word in (str(home), "ada-laptop", token, "hunter2"))  # they were there
    for private in (str(home), str(tmp_path), "acme", "/ada", "ada-laptop", token, "aB3aB3", "hunter2", "/mnt"):
        assert private not in text, private
    assert "- path: <secret>.jsonl" in text and "- path: rows.csv" in text
    assert "question: on <host>" in text and "chat_template: t.jinja" in text
    assert "accelerator_config: accelerator.json" in text and "- <MY_SECRET>" in text


def test_a_run_without_evaluation_has_no_results(card):
    text = card(evaluation=None)
    assert "Trained, not evaluated." in text
    assert "model-index" not in text


def test_a_value_that_is_not_finite_is_no_result(card):
    task = EVALUATION["tasks"][1]
    broken = task | {"tuned": {"value": float("inf"), "low": 3.0, "high": float("inf")}, "verdict": "worse"}
    text = card(evaluation={"tasks": [EVALUATION["tasks"][0], broken]})
    assert [r.metric_type for r in ModelCard(text).data.eval_results] == ["exact_match"]
    assert "| perplexity | 200 | 8.214 (7.610–8.900) | inf (3.000–inf) |" in text


def test_a_merged_model_gets_its_card_with_what_was_proven(card, tmp_path):
    card()
    folder = tmp_path / "runs" / "x"
    recipe = check(parse(RECIPE, "recipe.yaml"))
    plan = resolve(recipe, tmp_path / "recipe.yaml", MACHINE, str(folder))
    into = tmp_path / "merged"
    into.mkdir()
    notes = (("Merge", "largest difference of a logit: 1e-6\n"),)
    hub = frozenset({"org/base"})
    path = write_card(Card(RunFolder(folder), Record.model_validate(RECORD), plan, hub, into, notes))
    assert path == into / "README.md"
    head = ModelCard(path.read_text()).data.to_dict()
    assert (head["base_model_relation"], head["library_name"]) == ("finetune", "transformers")
    assert "## Merge\n\nlargest difference of a logit: 1e-6\n" in path.read_text()


NO_HEADS = ("", "# A\n", "---\nlicense: mit\n", "---\n[\n---\n", "---\n- mit\n---\n", "---\na: b: c\n---\n", "\x00")


@pytest.mark.parametrize("text", NO_HEADS)
def test_a_head_that_cannot_be_read_is_none(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert front_matter(tmp_path / "README.md") == {}
    assert license_of(tmp_path) == {}


def test_a_file_that_is_no_text_is_none(tmp_path):
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\xfe\n---\n")
    assert front_matter(tmp_path / "README.md") == {}
    assert license_of(tmp_path / "not there") == {} == license_of(None)


LORA = "{kind: lora, r: 4}"
REAL = [
    ("sft", "builtin:instructions", LORA, "PeftModel"),
    ("sft", "builtin:instructions", "null", "AutoModelForCausalLM"),
    ("pretrain", "builtin:text", "null", "Once upon a time"),
]


@pytest.mark.parametrize(("method", "data", "adapter", "word"), REAL)
def test_the_program_in_the_card_of_a_run_loads_its_model(method, data, adapter, word, tmp_path, monkeypatch, capsys):
    from tunekit.train.pipeline import Job, run

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    recipe = (
        f"method: {method}\ndata: {{train: [{{path: '{data}', limit: 8}}], max_length: 32}}\nadapter: {adapter}\n"
        "train: {max_steps: 1, batch_size: 4, threads: 1, save_every: never, precision: fp32}\n"
    )
    plan = resolve(check(parse(recipe, "recipe.yaml")), tmp_path / "recipe.yaml", MACHINE, str(tmp_path / "out"))
    assert run(Job(plan, recipe), Silent()).status == "done"
    text = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "More Information Needed" not in text  # PEFT leaves a form to be filled in, with the base's path in it
    assert str(tmp_path) not in text and "builtin/tiny" not in text
    assert ModelCard(text).data.library_name == ("peft" if adapter == LORA else "transformers")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert word in program
    monkeypatch.chdir(tmp_path / "out" / "model")
    capsys.readouterr()
    exec(program, {})
    assert capsys.readouterr().out.strip()
