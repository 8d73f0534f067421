import json
import subprocess
import sys
from collections import Counter
from typing import get_args

import pytest
from pydantic import BaseModel

from tunekit.core.errors import UserError, raise_all
from tunekit.core.registry import METHODS
from tunekit.plan.changes import CHOOSES, LONGER, OWN_BLOCK, RULES, Change, changes, judge, rule_of, table
from tunekit.plan.hardware import Gpu, Hardware
from tunekit.plan.plan import Plan
from tunekit.plan.resolve import resolve
from tunekit.recipe.document import override, parse
from tunekit.recipe.load import check, recipe_type

CPU = Hardware(cpu="a processor", cores=4, memory=2**34, cpu_bf16=False)
GPU = CPU.model_copy(update={"gpus": (Gpu(name="a GPU", memory=2**36, bf16=True),)})
GPUS = CPU.model_copy(update={"gpus": GPU.gpus * 2})
LORA = {"kind": "lora", "r": 8}


@pytest.fixture
def plan_of(tmp_path):
    """A plan from dotted keys, on a machine made by hand."""

    def build(sets=(), hardware=CPU, method="sft"):
        named = {"data.train": [{"path": "a.jsonl"}], "output.dir": str(tmp_path / "run")} | dict(sets)
        given = [f"{key}={json.dumps(value)}" for key, value in named.items()]
        document = override(parse(f"method: {method}\n", "recipe.yaml"), given)
        return resolve(check(document), tmp_path / "recipe.yaml", hardware)

    return build


def leaves(annotation, path):
    """(dotted key, annotation) of every leaf below; the blocks of a list stand without their position."""
    blocks = [part for part in parts(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
    if not blocks:
        yield path
    for block in blocks:
        for name, field in block.model_fields.items():
            yield from leaves(field.annotation, f"{path}.{name}" if path else name)


def parts(annotation):
    inner = get_args(annotation)
    return [annotation] if not inner else [found for part in inner for found in parts(part)]


ALL_KEYS = sorted({key for method in METHODS.names for key in leaves(recipe_type(method), "")} - {*METHODS.names})


def test_the_walk_sees_the_whole_schema():
    assert {"method", "train.learning_rate", "train.early_stopping.patience", "adapter.r", "data.eval.fraction"} < {
        *ALL_KEYS
    }
    assert {"data.train.path", "data.eval.path", "train.micro_batch_size", "guards.watchdog"} < {*ALL_KEYS}
    assert len(ALL_KEYS) > 80


@pytest.mark.parametrize("key", ALL_KEYS)
def test_every_key_of_the_schema_is_of_one_kind_by_decision(key):
    rule = rule_of(key)
    assert rule is not None, f"'{key}' has no rule in plan/changes.py: is a change of it harmless, allowed or fixed?"
    assert rule.kind in ("harmless", "allowed", "fixed") and rule.why


def test_a_key_without_a_rule_would_be_noticed():
    assert rule_of("train.brand_new") is None and rule_of("brand_new") is None


def test_no_key_stands_in_two_rules_and_none_is_made_up():
    counted = Counter(key for rule in RULES for key in rule.keys)
    assert {key for key, times in counted.items() if times > 1} == set()
    for key in {*counted, *LONGER.keys, *CHOOSES.keys} - {OWN_BLOCK}:
        assert any(leaf == key or leaf.startswith(f"{key}.") for leaf in ALL_KEYS), key


def test_the_table_shows_every_rule():
    rows = table()
    assert ("train.optimizer", "fixed", "the kept state belongs to the old optimizer") in rows
    assert {kind for key, kind, _ in rows if key == "train.epochs"} == {"harmless", "allowed"}
    assert {kind for key, kind, _ in rows if key == "eval.every"} == {"allowed"}
    assert len(rows) == sum(len(rule.keys) for rule in (*RULES, LONGER, CHOOSES))


SAME_RATE = {"train.learning_rate": 2e-4}  # the default is another one for fresh weights
KEEPS_BEST = {"data.eval": {"count": 2}, "train.keep_best": True, "eval.every": 5}
CASES = [
    # before, after, the changed key, old, new, kind
    ({}, {"train.learning_rate": 1e-5}, "train.learning_rate", 2e-4, 1e-5, "allowed"),
    ({}, {"train.schedule": "linear"}, "train.schedule", "cosine", "linear", "allowed"),
    ({}, {"train.warmup": 10}, "train.warmup", 0.03, 10, "allowed"),
    ({}, {"train.weight_decay": 0.1}, "train.weight_decay", 0.0, 0.1, "allowed"),
    ({}, {"train.adam_beta2": 0.95}, "train.adam_beta2", 0.999, 0.95, "allowed"),
    ({}, {"train.neftune_alpha": 5}, "train.neftune_alpha", None, 5.0, "allowed"),
    ({}, {"train.seed": 7}, "train.seed", 42, 7, "allowed"),
    ({}, {"train.batch_size": 16}, "train.batch_size", 32, 16, "allowed"),
    ({}, {"train.micro_batch_size": 2}, "train.micro_batch_size", 8, 2, "allowed"),
    ({}, {"train.precision": "bf16"}, "train.precision", "fp32", "bf16", "allowed"),
    ({}, {"launch.processes": 2, "train.micro_batch_size": 8}, "launch.processes", 1, 2, "allowed"),
    ({}, {"data.train": [{"path": "b.jsonl"}]}, "data.train.0.path", "a.jsonl", "b.jsonl", "allowed"),
    ({}, {"data.max_length": 1024}, "data.max_length", 2048, 1024, "allowed"),
    ({}, {"data.packing": True}, "data.packing", False, True, "allowed"),
    ({}, {"data.eval": {"count": 9}}, "data.eval.count", None, 9, "allowed"),
    ({}, {"model.chat_template": "chatml"}, "model.chat_template", None, "chatml", "allowed"),
    ({}, {"train.extra.label_smoothing_factor": 0.1}, "train.extra.label_smoothing_factor", None, 0.1, "allowed"),
    ({"train.epochs": 2}, {"train.epochs": 3}, "train.epochs", 2, 3, "harmless"),
    ({}, {"train.epochs": 3}, "train.epochs", None, 3, "harmless"),
    ({"train.epochs": 3}, {}, "train.epochs", 3, None, "allowed"),
    ({}, {"train.epochs": 0.5}, "train.epochs", None, 0.5, "allowed"),
    ({"train.max_steps": 10}, {"train.max_steps": 20}, "train.max_steps", 10, 20, "harmless"),
    ({"train.max_steps": 20}, {"train.max_steps": 10}, "train.max_steps", 20, 10, "allowed"),
    ({}, {"train.max_steps": 10}, "train.max_steps", None, 10, "allowed"),
    ({}, {"train.log_every": 1}, "train.log_every", 10, 1, "harmless"),
    ({}, {"train.save_every": 50}, "train.save_every", None, 50, "harmless"),
    ({}, {"train.keep_checkpoints": 9}, "train.keep_checkpoints", 2, 9, "harmless"),
    ({}, {"train.workers": 2}, "train.workers", 0, 2, "harmless"),
    ({}, {"train.threads": 2}, "train.threads", None, 2, "harmless"),
    ({}, {"data.cache": False}, "data.cache", True, False, "harmless"),
    ({}, {"guards.on_divergence": "stop"}, "guards.on_divergence", "warn", "stop", "harmless"),
    ({}, {"eval.batch_size": 4}, "eval.batch_size", 32, 4, "harmless"),
    ({"data.eval": {"count": 2}}, {"data.eval": {"count": 2}, "eval.every": 5}, "eval.every", None, 5, "harmless"),
    (KEEPS_BEST, KEEPS_BEST | {"eval.every": 9}, "eval.every", 5, 9, "allowed"),
    (KEEPS_BEST, KEEPS_BEST | {"eval.confidence": 0.9}, "eval.confidence", 0.95, 0.9, "harmless"),
    (SAME_RATE, SAME_RATE | {"model.name": "builtin:random"}, "model.name", "builtin:tiny", "builtin:random", "fixed"),
    ({}, {"model.dtype": "bfloat16"}, "model.dtype", "float32", "bfloat16", "fixed"),
    ({}, {"model.tokenizer": "other"}, "model.tokenizer", None, "other", "fixed"),
    ({}, {"train.optimizer": "muon"}, "train.optimizer", "adamw", "muon", "fixed"),
    ({"adapter": LORA}, {"adapter": LORA | {"r": 4}}, "adapter.r", 8, 4, "fixed"),
    (
        {"train.max_steps": 5},
        {"train.max_steps": 5, "data.streaming": True},
        "data.streaming", False, True, "fixed",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "key", "old", "new", "kind"), CASES)
def test_one_changed_key(plan_of, before, after, key, old, new, kind):
    found = changes(plan_of(before), plan_of(after))
    assert found == [Change(key, old, new)]
    for allowed, refused in [((), kind != "harmless"), ((key,), kind == "fixed")]:
        judged = judge(found, allowed)
        assert [problem.where for problem in judged.problems] == [key] * refused
        assert list(judged.accepted) == found[refused:]


def test_the_same_recipe_has_not_changed(plan_of, tmp_path):
    old = plan_of({"adapter": LORA, "train.weight_decay": 1, "train.extra.label_smoothing_factor": 1})
    assert changes(old, old) == []
    floats = {"train.weight_decay": 1.0, "train.extra.label_smoothing_factor": 1.0}
    assert changes(old, plan_of({"adapter": LORA | {"alpha": 32.0}} | floats)) == []
    old.save(tmp_path / "plan.json")
    assert changes(Plan.load(tmp_path / "plan.json"), old) == []


def test_true_is_not_one(plan_of):
    old, new = plan_of({"train.extra.full_determinism": False}), plan_of()
    extra = new.recipe.train.model_copy(update={"extra": {"full_determinism": 0}})
    new = new.model_copy(update={"recipe": new.recipe.model_copy(update={"train": extra})})
    assert changes(old, new) == [Change("train.extra.full_determinism", False, 0)]


def test_the_folder_the_machine_and_the_version_are_not_compared(plan_of, tmp_path):
    old = plan_of()
    new = plan_of({"output.dir": str(tmp_path / "elsewhere")}, hardware=CPU.model_copy(update={"cores": 64}))
    assert (old.run_dir, old.threads) != (new.run_dir, new.threads)
    assert changes(old, new.model_copy(update={"tunekit": "9.9", "recipe_folder": "there"})) == []


def test_what_auto_comes_to_on_another_machine_is_a_change(plan_of):
    assert changes(plan_of(), plan_of(hardware=GPU)) == [Change("train.precision", "fp32", "bf16")]
    auto = {"launch.processes": "auto", "train.precision": "bf16", "train.micro_batch_size": 8}
    old, new = plan_of(auto, GPUS), plan_of(auto, GPU)
    assert changes(old, new) == [Change("launch.processes", 2, 1)]
    lora = {"adapter": LORA, "train.precision": "bf16"}
    found = changes(plan_of(lora), plan_of(lora, GPU))
    assert found == [Change("model.dtype", "float32", "bfloat16")]
    assert judge(found, ["model.dtype"]).problems[0].where == "model.dtype"


def test_a_key_that_changed_and_what_it_came_to_are_one_change(plan_of):
    found = changes(plan_of({"train.precision": "bf16"}, GPU), plan_of({"train.precision": "fp32"}, GPU))
    assert found == [Change("train.precision", "bf16", "fp32")]


def test_to_write_down_what_was_derived_is_no_change(plan_of):
    old = plan_of()
    named = {
        "train.precision": "fp32",
        "model.dtype": "float32",
        "train.micro_batch_size": old.micro_batch_size,
        "launch.processes": "auto",
    }
    assert changes(old, plan_of(named)) == []


def test_an_automatic_micro_batch_of_another_size_is_a_change(plan_of):
    def auto(size):
        plan = plan_of({"train.micro_batch_size": size})
        train = plan.recipe.train.model_copy(update={"micro_batch_size": "auto"})
        return plan.model_copy(update={"recipe": plan.recipe.model_copy(update={"train": train})})

    assert changes(auto(8), auto(8)) == []
    found = changes(auto(8), auto(4))
    assert found == [Change("train.micro_batch_size", 8, 4)]
    assert judge(found, ()).problems[0].what == (
        "'train.micro_batch_size' was 8 when the checkpoint was made, now it is 4"
    )


def test_a_micro_batch_that_only_follows_is_not_reported(plan_of):
    old, new = plan_of({"train.batch_size": 4}), plan_of({"train.batch_size": 2})
    assert (old.micro_batch_size, new.micro_batch_size) == (4, 2)
    assert changes(old, new) == [Change("train.batch_size", 4, 2)]
    new = plan_of({"train.batch_size": 2, "train.micro_batch_size": 1})
    assert {change.key for change in changes(old, new)} == {"train.batch_size", "train.micro_batch_size"}


def test_a_block_that_came_or_went_is_one_change(plan_of):
    block = plan_of({"adapter": LORA}).recipe.adapter.model_dump(mode="json")
    assert (block["kind"], block["r"], block["alpha"]) == ("lora", 8, 32.0)
    assert changes(plan_of(), plan_of({"adapter": LORA})) == [Change("adapter", None, block)]
    assert changes(plan_of({"adapter": LORA}), plan_of()) == [Change("adapter", block, None)]
    rows = {"data.eval": {"count": 2}, "eval.every": 5}
    found = changes(plan_of(rows), plan_of(rows | {"train.early_stopping": {"patience": 2}}))
    assert found == [Change("train.early_stopping", None, {"patience": 2, "min_delta": 0.0})]


def test_lists_of_another_length_are_compared_whole(plan_of):
    one, two = [{"path": "a.jsonl"}], [{"path": "a.jsonl"}, {"path": "b.jsonl"}]
    [found] = changes(plan_of({"data.train": one}), plan_of({"data.train": two}))
    assert (found.key, len(found.old), len(found.new)) == ("data.train", 1, 2)
    [problem] = judge([found], ()).problems
    assert problem.what == "'data.train' was a list of 1 when the checkpoint was made, now it is a list of 2"
    found = changes(plan_of({"data.train": two}), plan_of({"data.train": [*one, {"path": "c.jsonl", "limit": 5}]}))
    assert [change.key for change in found] == ["data.train.1.path", "data.train.1.limit"]
    [found] = changes(plan_of({"data.eval": one}), plan_of({"data.eval": {"count": 3}}))
    assert found.key == "data.eval"
    [found] = changes(plan_of({"eval.metrics": ["exact_match"]}), plan_of({"eval.metrics": ["contains"]}))
    assert found == Change("eval.metrics", ["exact_match"], ["contains"])


def test_another_method_is_one_change_and_refused(plan_of):
    found = changes(plan_of(method="sft"), plan_of(method="pretrain"))
    assert found == [Change("method", "sft", "pretrain")]
    [problem] = judge(found, ["method"]).problems
    assert "cannot be changed: a checkpoint holds the state of its own method" in problem.what
    assert "with its folder as model.name" in problem.fix


def test_the_methods_own_block_is_allowed_when_named():
    found = [Change("sft.a_key", 1, 2)]
    assert judge(found, ()).problems and judge(found, ["sft"]).accepted == tuple(found)


def test_epochs_for_steps_must_be_named(plan_of):
    found = changes(plan_of({"train.epochs": 1}), plan_of({"train.max_steps": 1000}))
    assert {change.key for change in found} == {"train.epochs", "train.max_steps"}
    assert len(judge(found, ()).problems) == 2
    assert judge(found, ["train.epochs", "train.max_steps"]).problems == ()


def test_a_refusal_says_key_old_new_and_what_to_type(plan_of):
    found = changes(plan_of({"train.learning_rate": 1e-3}), plan_of({"train.learning_rate": 1e-5}))
    with pytest.raises(UserError) as caught:
        raise_all(UserError, judge(found, ()).problems)
    [problem] = caught.value.problems
    assert problem.what == "'train.learning_rate' was 0.001 when the checkpoint was made, now it is 1e-05"
    assert problem.where == "train.learning_rate"
    assert problem.fix == "keep the old value, or apply the new one with --allow-change train.learning_rate"
    found = changes(plan_of(), plan_of({"model.chat_template": "x" * 200}))
    [problem] = judge(found, ()).problems
    assert "was not set when" in problem.what and len(problem.what) < 200 and problem.what.endswith("...")


def test_a_block_or_a_key_can_be_named(plan_of):
    after = {"data.train": [{"path": "b.jsonl", "columns": {"prompt": "q"}}], "train.seed": 1, "train.log_every": 1}
    found = changes(plan_of(), plan_of(after))
    keys = {"data.train.0.path", "data.train.0.columns.prompt", "train.seed"}
    assert {change.key for change in found} == keys | {"train.log_every"}
    for allowed, left in [
        ([], keys),
        (["data"], {"train.seed"}),
        (["data.train", "train"], set()),
        (["data.train.0", "train.seed"], set()),
        (["data.train.path", "train.seed"], {"data.train.0.columns.prompt"}),
        (["data.train.0.columns.prompt"], {"data.train.0.path", "train.seed"}),
        (["data.t"], keys),
    ]:
        problems = judge(found, allowed).problems
        assert {problem.where for problem in problems} - {"--allow-change"} == left, allowed


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("train.learning_rat", "did you mean 'train.learning_rate'?"),
        ("learning_rate", "did you mean 'train.learning_rate'?"),
        ("dat", "did you mean 'data'?"),
        ("qqqq", "name a key, such as train.learning_rate"),
        ("train.learning_rate.x", "did you mean 'train.learning_rate'?"),
        ("", "name a key"),
    ],
)
def test_a_name_that_is_no_key_is_a_problem(name, hint):
    [problem] = judge([], [name]).problems
    assert problem.what == f"unknown recipe key '{name}'" and problem.where == "--allow-change"
    assert problem.fix.startswith(hint)


FURTHER_NAMES = ["data", "sft", "data.train.3.limit", "train.extra.x", "data.train.columns.y"]


@pytest.mark.parametrize("name", [*ALL_KEYS, *FURTHER_NAMES])
def test_naming_what_did_not_change_is_no_error(name):
    assert judge([], [name]).problems == ()


def test_nothing_heavy_is_imported():
    code = "import sys, tunekit.plan.changes as c; c.judge([], ['x']); print({'torch', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_default_of_a_plan_that_is_read_again_was_not_asked_for(tmp_path):
    """Else a run folder's preview would refuse options that nobody set."""
    import json

    from tunekit.plan.hardware import probe
    from tunekit.plan.plan import Plan
    from tunekit.plan.resolve import resolve
    from tunekit.recipe.document import parse
    from tunekit.recipe.load import check

    value = {"method": "grpo", "model": {"name": "builtin:tiny"}, "data": {"train": [{"path": "builtin:instructions"}]}}
    value["grpo"] = {"reward": [{"kind": "length", "max": 4}], "generations": 2}
    plan = resolve(check(parse(json.dumps(value), "r.yaml")), tmp_path / "r.yaml", probe(), str(tmp_path / "run"))
    again = Plan.model_validate_json(plan.model_dump_json())
    assert again == plan and again.hash == plan.hash
    assert again.recipe.options.model_fields_set == {"reward", "generations"}
