import json
from functools import cache
from pathlib import Path

import pytest
from malformed_for_tests import GOOD, RECIPES

from tunekit.cli.recipe import full_schema
from tunekit.core.errors import MachineError, UserError
from tunekit.core.registry import ADAPTERS, METHODS, QUANTIZERS, REWARDS
from tunekit.plan.hardware import Gpu, Hardware
from tunekit.plan.plan import Plan
from tunekit.plan.resolve import resolve
from tunekit.recipe.document import parse, scalar
from tunekit.recipe.extra import NAMED, training_arguments
from tunekit.recipe.load import check, load, recipe_type
from tunekit.recipe.schema import DataBlock, EvalBlock, EvalSplit, ModelBlock, TrainBlock

CPU = Hardware(cpu="a CPU", cores=8, memory=16_000_000_000, cpu_bf16=True)
A100 = Gpu(name="A100", memory=80_000_000_000, bf16=True)
T4 = Gpu(name="T4", memory=16_000_000_000, bf16=False)
FULL = """\
method: sft
model: {name: org/name, revision: v1, dtype: bfloat16, attention: sdpa}
adapter: {kind: lora, r: 8, alpha: 16, targets: [q_proj, v_proj]}
data:
  train:
    - path: a.jsonl
      format: prompt_completion
      columns: {prompt: question.text, completion: answer}
      weight: 0.5
    - {path: b.csv, limit: 10, encoding: gbk}
  eval: [{path: c.jsonl}]
  max_length: 512
train:
  epochs: 3
  learning_rate: 2e-5
  warmup: 100
  trackers: [tensorboard]
  early_stopping: {patience: 2}
  extra: {full_determinism: true, lr_scheduler_kwargs: {num_cycles: 2}}
eval: {every: 0.1, metrics: [exact_match, contains]}
launch: {processes: auto}
output: {dir: runs/x}
"""


def recipe(text):
    return check(parse(text, "recipe.yaml"))


def plan_of(text, hardware=CPU):
    return resolve(recipe(text), Path("recipe.yaml"), hardware)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # https://yaml.org/spec/1.2.2/#1032-tag-resolution
        ("", None), ("~", None), ("null", None), ("Null", None), ("NULL", None), ("nULL", "nULL"),
        ("true", True), ("False", False), ("TRUE", True), ("tRUE", "tRUE"),
        ("0", 0), ("0o7", 7), ("0x3A", 58), ("-19", -19), ("+12", 12), ("010", 10), ("0b1", "0b1"), ("1_000", "1_000"),
        ("0.", 0.0), ("-0.0", 0.0), (".5", 0.5), ("+12e03", 12000.0), ("-2E+05", -200000.0), ("1e-4", 0.0001),
        ("2e-5", 0.00002), (".inf", float("inf")), ("-.Inf", float("-inf")), ("+.INF", float("inf")), ("inf", "inf"),
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("NO", "NO"), ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"), ("1.2.3", "1.2.3"), ("e5", "e5"), (".", "."), ("１", "１"), ("1\n", "1\n"),
    ],
)  # fmt: skip
def test_plain_scalars_follow_yaml_1_2(text, value):
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_nan_is_a_number():
    assert scalar(".nan") != scalar(".nan")


def test_quoted_scalars_are_text():
    value = parse("a: '5'\nb: \"no\"\nc: |\n  1\nd: >-\n  true\n", "x").value
    assert value == {"a": "5", "b": "no", "c": "1\n", "d": "true"}


def test_aliases_that_are_small_work():
    value = parse("a: &x {b: 1}\nc: *x\nd: [*x, *x]\n", "x").value
    assert value == {"a": {"b": 1}, "c": {"b": 1}, "d": [{"b": 1}, {"b": 1}]}


def test_a_good_recipe_is_read_in_full(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(FULL, encoding="utf-8-sig")  # a byte order mark is no fault
    read = load(path, method="sft")
    assert read.model.revision == "v1"
    assert read.adapter_block.targets == ("q_proj", "v_proj")
    assert read.data.train[0].columns == {"prompt": "question.text", "completion": "answer"}
    assert (read.data.train[1].limit, read.data.train[1].encoding) == (10, "gbk")
    assert read.data.eval[0].path == "c.jsonl"
    assert (read.train.learning_rate, read.train.warmup, read.train.epochs) == (0.00002, 100.0, 3.0)
    assert read.train.extra == {"full_determinism": True, "lr_scheduler_kwargs": {"num_cycles": 2}}
    assert read.launch.processes == "auto"


def test_dates_and_versions_stay_text():
    assert recipe(GOOD + "model: {name: org/m, revision: 2026-01-01}\n").model.revision == "2026-01-01"


def test_line_endings_of_windows(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(FULL.replace("\n", "\r\n").encode())
    assert load(path) == recipe(FULL)


@pytest.mark.parametrize(
    ("text", "method"), [("sft: {}\n", "sft"), ("pretrain: {}\n", "pretrain"), ("method: pretrain\n", "pretrain")]
)
def test_the_method_is_named_or_follows_from_its_block(text, method):
    assert recipe(text + "data: {train: [{path: a}]}\n").method == method


def test_the_method_is_taken_from_the_command():
    assert check(parse("data: {train: [{path: a}]}\n", "x"), "pretrain").method == "pretrain"


def test_a_recipe_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        recipe(FULL).train.seed = 1


def test_overrides_of_every_kind(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(FULL)
    changed = load(
        path,
        overrides=[
            "train.learning_rate=1e-4", "train.epochs=", "train.max_steps=7", "data.train.1.limit=3",
            "data.train.2={path: d.txt, format: text}", "data.eval={count: 5}", "train.trackers=[]",
            "train.extra.full_determinism=false", "model.name='5'", "output.dir=it's=here", "train.neftune_alpha=5",
        ],
    )  # fmt: skip
    assert changed.train.learning_rate == 0.0001
    assert (changed.train.epochs, changed.train.max_steps) == (None, 7)
    assert [source.path for source in changed.data.train] == ["a.jsonl", "b.csv", "d.txt"]
    assert (changed.data.train[1].limit, changed.data.train[1].encoding) == (3, "gbk")
    assert changed.data.eval == EvalSplit(count=5)
    assert changed.train.trackers == ()
    assert changed.train.extra == {"full_determinism": False, "lr_scheduler_kwargs": {"num_cycles": 2}}
    assert (changed.model.name, changed.output.dir) == ("5", "it's=here")


def test_the_last_override_wins(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    assert load(path, overrides=["train.seed=1", "train={seed: 2, log_every: 3}", "train.seed=4"]).train.seed == 4
    assert load(path, overrides=["train.seed=1", "train={log_every: 3}"]).train.seed == 42


@pytest.mark.parametrize("text", [FULL, *(METHODS.load(name).RECIPE for name in METHODS.names)])
@pytest.mark.parametrize("hardware", [CPU, Hardware(**CPU.model_dump(exclude={"gpus"}), gpus=(A100, A100))])
def test_a_saved_plan_comes_back_equal(tmp_path, text, hardware):
    plan = plan_of(text, hardware)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert type(again.recipe) is type(plan.recipe)
    assert again.recipe.options == plan.recipe.options
    assert again.hash == plan.hash


def test_the_hash_is_that_of_the_plan_not_of_machine_and_folder():
    plan = plan_of(GOOD + "train: {precision: fp32}\nmodel: {dtype: float32}\n")
    other = plan_of(
        GOOD + "model: {dtype: float32}\ntrain: {precision: fp32}\noutput: {dir: elsewhere}\n",
        Hardware(cpu="another", cores=2, memory=1, cpu_bf16=False, gpus=(T4,)),
    )
    assert plan.run_dir != other.run_dir
    assert plan.hash == other.hash
    changed = plan_of(GOOD + "train: {precision: fp32, seed: 43}\nmodel: {dtype: float32}\n")
    assert plan.hash != changed.hash


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no plan to read"), (b"{}", "not a plan"), (b"[1", "not a plan"), (b"\xff\xfe", "not a plan"),
        (b'{"recipe": {}}', "unknown method"), (b'{"recipe": {"method": "sft"}}', "not a plan"),
    ],
)  # fmt: skip
def test_files_that_are_no_plans(tmp_path, content, message):
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        Plan.load(path)


# micro x accumulation = the share of a process; micro is its largest divisor within 16,384 tokens (by hand)
@pytest.mark.parametrize(
    ("batch", "processes", "length", "micro", "expected"),
    [
        (32, 1, 2048, None, (8, 4)), (32, 2, 2048, None, (8, 2)), (32, 4, 2048, None, (8, 1)),
        (32, 1, 128, None, (32, 1)), (256, 1, 128, None, (128, 2)), (32, 1, 16384, None, (1, 32)),
        (32, 1, 1_000_000, None, (1, 32)), (30, 1, 2048, None, (6, 5)), (7, 1, 2048, None, (7, 1)),
        (13, 1, 2048, None, (1, 13)), (12, 1, 5000, None, (3, 4)), (1, 1, 2048, None, (1, 1)),
        (32, 2, 2048, 4, (4, 4)), (32, 1, 2048, 32, (32, 1)), (6, 3, 64, None, (2, 1)),
    ],
)  # fmt: skip
def test_batch_geometry(batch, processes, length, micro, expected):
    text = f"method: sft\ndata: {{train: [{{path: a}}], max_length: {length}}}\nlaunch: {{processes: {processes}}}\n"
    text += f"train: {{batch_size: {batch}{f', micro_batch_size: {micro}' if micro else ''}}}\n"
    plan = plan_of(text)
    assert (plan.micro_batch_size, plan.accumulation) == expected
    assert plan.processes == processes
    assert plan.examples_per_step == batch


@pytest.mark.parametrize(
    ("gpus", "text", "precision", "dtype", "processes", "threads"),
    [
        ((), "", "bf16", "float32", 1, 8),  # in hardware
        ((), "train: {precision: fp32}\n", "fp32", "float32", 1, 8),
        ((), "launch: {processes: auto}\n", "bf16", "float32", 1, 8),
        ((), "launch: {processes: 4}\n", "bf16", "float32", 4, 2),
        ((), "launch: {processes: 16}\n", "bf16", "float32", 16, 1),
        ((), "train: {threads: 3}\n", "bf16", "float32", 1, 3),
        ((A100,), "", "bf16", "float32", 1, 8),
        ((A100,), "adapter: {kind: lora}\n", "bf16", "bfloat16", 1, 8),
        ((A100,), "adapter: {kind: lora}\ntrain: {precision: fp32}\n", "fp32", "float32", 1, 8),
        ((A100, A100), "launch: {processes: auto}\n", "bf16", "float32", 2, 4),
        ((T4,), "adapter: {kind: lora}\n", "fp16", "float32", 1, 8),
        ((A100, T4), "", "fp16", "float32", 1, 8),
        ((A100,), "model: {dtype: float16}\n", "bf16", "float16", 1, 8),
    ],
)
def test_what_follows_from_the_machine(gpus, text, precision, dtype, processes, threads):
    plan = plan_of(GOOD + text, Hardware(**CPU.model_dump(exclude={"gpus"}), gpus=gpus))
    assert (plan.precision, plan.weights_dtype, plan.processes, plan.threads) == (precision, dtype, processes, threads)


@pytest.mark.parametrize(
    ("gpus", "text", "kind", "message"),
    [
        ((), "train: {precision: fp16}\n", MachineError, "fp16 training needs a GPU"),
        ((T4,), "train: {precision: bf16}\n", MachineError, "does not compute in bfloat16"),
        ((), "train: {trackers: [clearml, flyte, azure_ml]}\n", MachineError, "flytekit"),
        ((A100,), "launch: {processes: 2}\n", UserError, "this machine has 1 GPU"),
        ((A100,) * 3, "launch: {processes: auto}\n", UserError, "cannot be shared by 3"),
    ],
)
def test_what_the_machine_does_not_have_is_refused(gpus, text, kind, message):
    with pytest.raises(kind) as caught:
        plan_of(GOOD + text, Hardware(**CPU.model_dump(exclude={"gpus"}), gpus=gpus))
    assert message in str(caught.value)
    assert all(problem.fix for problem in caught.value.problems)


def test_a_cpu_without_bfloat16_in_hardware_trains_in_float32():
    assert plan_of(GOOD, CPU.model_copy(update={"cpu_bf16": False})).precision == "fp32"


def test_liger_kernels_need_a_gpu_and_their_package(monkeypatch):
    from tunekit.plan import resolve

    gpu = CPU.model_copy(update={"gpus": (A100,)})
    assert [plan_of(GOOD, machine).kernels for machine in (CPU, gpu)] == ["none", "none"]  # not installed here
    wanted = GOOD + "train: {kernels: liger}\n"
    for machine, fix in ((CPU, "kernels: auto"), (gpu, "pip install liger-kernel")):
        with pytest.raises(MachineError, match="Liger kernels need a GPU") as caught:
            plan_of(wanted, machine)
        assert fix in caught.value.fix
    monkeypatch.setattr(resolve, "_installed", lambda module: module == "liger_kernel")
    assert [plan_of(GOOD, machine).kernels for machine in (CPU, gpu)] == ["none", "liger"]
    assert plan_of(wanted, gpu).kernels == "liger"
    assert plan_of(GOOD + "train: {kernels: none}\n", gpu).kernels == "none"


def test_a_tracker_without_a_package_is_not_asked_for_one():
    assert plan_of(GOOD + "train: {trackers: [kubeflow]}\n").recipe.train.trackers == ("kubeflow",)


def test_run_folders_are_numbered_and_a_full_one_is_refused_untouched(tmp_path):
    assert plan_of(GOOD).run_dir == "runs/recipe"
    (tmp_path / "runs" / "recipe").mkdir(parents=True)
    assert plan_of(GOOD).run_dir == "runs/recipe-2"
    (tmp_path / "runs" / "recipe-2").mkdir()
    assert plan_of(GOOD).run_dir == "runs/recipe-3"
    (tmp_path / "empty").mkdir()
    assert plan_of(GOOD + "output: {dir: empty}\n").run_dir == "empty"
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("the only copy")
    for named in ("full", "full/thesis.txt"):
        with pytest.raises(UserError, match="is not empty"):
            plan_of(GOOD + f"output: {{dir: {named}}}\n")
    assert (full / "thesis.txt").read_text() == "the only copy"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "full", "runs"]  # planning makes no folder


# ---- the JSON schema ------------------------------------------------------------------------------------------------

_TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
_SPOKEN_OF = {"title", "description", "default", "discriminator", "$defs", "$schema"}


def is_type(value, name):
    if name in ("number", "integer"):
        return type(value) is int or (name == "number" and type(value) is float)
    return isinstance(value, _TYPES[name])


def valid(value, schema, root):
    """Whether ``value`` fits ``schema``: the part of JSON Schema that pydantic writes; other keywords are an error."""
    rules = {
        "$ref": lambda s: valid(value, root["$defs"][s.removeprefix("#/$defs/")], root),
        "anyOf": lambda s: any(valid(value, one, root) for one in s),
        "oneOf": lambda s: sum(valid(value, one, root) for one in s) == 1,
        "type": lambda s: is_type(value, s),
        "enum": lambda s: value in s,
        "const": lambda s: value == s,
        "minimum": lambda s: value >= s,
        "maximum": lambda s: value <= s,
        "exclusiveMinimum": lambda s: value > s,
        "exclusiveMaximum": lambda s: value < s,
        "minLength": lambda s: len(value) >= s,
        "minItems": lambda s: len(value) >= s,
        "items": lambda s: all(valid(item, s, root) for item in value),
        "required": lambda s: all(name in value for name in s),
        "properties": lambda s: all(valid(value[name], one, root) for name, one in s.items() if name in value),
        "additionalProperties": lambda s: all(
            s is True or (s is not False and valid(value[name], s, root))
            for name in value
            if name not in schema.get("properties", {})
        ),
    }
    if "type" in schema and not is_type(value, schema["type"]):
        return False
    return all(rules[keyword](s) for keyword, s in schema.items() if keyword not in _SPOKEN_OF)


@cache
def schema_of_all():
    """Made once: it takes seconds, and nobody changes it."""
    return full_schema()


def schemas():
    return [schema_of_all(), *(recipe_type(name).model_json_schema() for name in METHODS.names)]


@pytest.mark.parametrize("text", [FULL, GOOD, *(METHODS.load(name).RECIPE for name in METHODS.names)])
def test_the_schema_accepts_good_recipes(text):
    schema = schema_of_all()
    assert valid(parse(text, "x").value, schema, schema)


# the faults that a schema can express
@pytest.mark.parametrize(
    "name",
    [
        "text for a whole number", "fraction for a whole number", "number for text", "empty text", "no is text",
        "text for a block", "block without keys", "text for the list of sources", "column that is no text",
        "processes", "unknown key, depth 1", "unknown key, depth 2", "unknown key, depth 3", "unknown key, depth 4",
        "a source's key in the split", "too large", "zero", "length", "open bound", "no sources", "unknown word",
        "unknown method", "unknown tracker", "unknown adapter", "adapter without a kind", "adapter's range",
        "adapter's key", "no data", "source without a path", "extra: no block",
    ],
)  # fmt: skip
def test_the_schema_rejects_bad_recipes(name):
    schema = schema_of_all()
    assert not valid(parse(RECIPES[name][0], "x").value, schema, schema)


def test_every_key_of_the_schema_has_a_description():
    missing = []
    for schema in schemas():
        for name, block in [("recipe", schema), *schema["$defs"].items()]:
            assert block["additionalProperties"] is False, name
            missing += [
                f"{name}.{key}"
                for key, value in block.get("properties", {}).items()
                if not value.get("description") and "const" not in value  # a kind is its own description
            ]
    assert not missing


def test_every_plugin_block_has_a_place_in_the_schema():
    schema = full_schema()
    assert set(METHODS.names) <= set(schema["properties"])
    assert schema["properties"]["method"]["enum"] == list(METHODS.names)
    kinds = [block["properties"]["kind"] for block in schema["$defs"].values() if "kind" in block.get("properties", {})]
    assert {kind["const"] for kind in kinds} == {*ADAPTERS.names, *QUANTIZERS.names, *REWARDS.names}
    references = {part for text in [json.dumps(schema)] for part in text.split('"#/$defs/')[1:]}
    assert {part.split('"')[0] for part in references} <= set(schema["$defs"])


def test_no_recipe_has_too_many_fields():
    shared = sum(len(block.model_fields) for block in (ModelBlock, DataBlock, TrainBlock, EvalBlock))
    own = {name: len(METHODS.load(name).Config.model_fields) for name in METHODS.names}
    assert shared <= 60 and max(own.values()) <= 30, (shared, own)


# ---- in step with transformers --------------------------------------------------------------------------------------


def test_the_trackers_are_those_of_transformers():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    tracker = TrainBlock.model_json_schema()["properties"]["trackers"]["items"]["enum"]
    assert set(tracker) == set(INTEGRATION_TO_CALLBACK)


def test_the_fields_read_from_the_source_are_those_of_the_class():
    import dataclasses

    from transformers import TrainingArguments

    assert set(training_arguments()) == {f.name for f in dataclasses.fields(TrainingArguments) if f.init}


def test_named_keys_cover_what_the_trainer_is_given():
    from tunekit.train.arguments import training_arguments as given

    texts = [
        "", "train: {max_steps: 5, save_every: 5}\n", "train: {schedule: cosine_with_min_lr, optimizer: muon}\n",
        "data: {train: [{path: a}], eval: {count: 5}}\neval: {every: 5}\ntrain: {keep_best: true}\n",
        "data: {train: [{path: a}], eval: {count: 5}}\neval: {every: 5}\ntrain: {early_stopping: {}}\n",
    ]  # fmt: skip
    own = set()
    for text in texts:
        for hardware in (CPU, Hardware(**CPU.model_dump(exclude={"gpus"}), gpus=(A100,))):
            plan = plan_of((GOOD if "data:" not in text else "method: sft\n") + text, hardware)
            own |= given(plan, Path("staging"), evaluates=True).keys()
    # these two may be given as well: the first is only a default, the second is asked for before it is set
    assert own - NAMED.keys() == {"ddp_find_unused_parameters", "lr_scheduler_kwargs"}


def test_every_extra_field_can_be_checked():
    for name in training_arguments().keys() - NAMED.keys():
        with pytest.raises(UserError, match=f"'train.extra.{name}' must be"):
            recipe(GOOD + f"train: {{extra: {{{name}: {{1: [2]}}}}}}\n" if "kwargs" not in name and "config" not in name
                   else GOOD + f"train: {{extra: {{{name}: [2]}}}}\n")  # fmt: skip


def test_a_name_in_named_is_a_field_or_a_former_one():
    assert NAMED.keys() - training_arguments().keys() == {"warmup_ratio", "trust_remote_code"}
