import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import tunekit
from tunekit.cli.app import app
from tunekit.core.errors import MachineError
from tunekit.core.registry import METHODS
from tunekit.recipe.load import load

HEAVY = ("torch", "transformers", "datasets", "peft", "trl", "accelerate", "pyarrow", "numpy")
SMALL = ["--set", "data.train.0.limit=60", "--set", "data.max_length=64"]


def commands(command=None, path=()):
    """Every command and group below the program, by its words."""
    command = command or get_command(app)
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    """An empty working directory, and a data cache of its own."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def run():
    def invoke(*words):
        return CliRunner().invoke(app, [str(word) for word in words], prog_name="tunekit")

    return invoke


@pytest.fixture
def recipe():
    Path("recipe.yaml").write_text(METHODS.load("sft").RECIPE, encoding="utf-8")
    return "recipe.yaml"


def process(*words, **variables):
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"} | variables
    command = [sys.executable, "-m", "tunekit", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def files(folder="."):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


# ---- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=lambda path: " ".join(path) or "tunekit")
def test_help_of_every_command(run, path):
    command = dict(commands())[path]
    shown = run(*path, "--help")
    assert shown.exit_code == 0
    assert shown.stdout == run(*path, "-h").stdout
    assert "Usage: tunekit" in shown.stdout
    if hasattr(command, "commands"):
        assert all(name in shown.stdout for name in command.commands)
    else:
        assert "Example" in shown.stdout
        assert f"tunekit {' '.join(path)}" in shown.stdout.split("Example")[1]


def test_every_option_has_help():
    bare = [
        f"{' '.join(path)} {option.name}"
        for path, command in commands()
        for option in command.params
        if not getattr(option, "help", None)
    ]
    assert not bare


def test_every_method_is_a_command():
    assert set(METHODS.names) < set(get_command(app).commands)


def test_without_arguments_the_help_is_shown(run):
    shown = run()
    assert shown.exit_code == 2
    assert "Usage: tunekit" in shown.output
    assert "tunekit init sft -o recipe.yaml" in shown.output


def test_version(run):
    assert run("--version").stdout == f"tunekit {tunekit.__version__}\n"
    done = process("--version")
    assert (done.returncode, done.stdout) == (0, f"tunekit {tunekit.__version__}\n")


@pytest.mark.parametrize("words", [["--help"], ["sft", "--help"], ["init", "sft"], ["schema"], ["sft", "none.yaml"]])
def test_light_commands_import_nothing_heavy(words):
    program = f"""
import json, sys
from tunekit.cli.app import app
try:
    app({words})
finally:
    print("\\n" + json.dumps([name for name in {HEAVY} if name in sys.modules]))
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stdout
    assert json.loads(shown.splitlines()[-1]) == []


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_scripts(shell):
    program = Path(sys.executable).with_name("tunekit")  # a script is needed: completion is bound to its name
    for words, variables in (["--show-completion", shell], {}), ([], {"_TUNEKIT_COMPLETE": f"source_{shell}"}):
        environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"} | variables
        done = subprocess.run([program, *words], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert ("#compdef tunekit" if shell == "zsh" else "_tunekit_completion tunekit") in done.stdout


def test_completion_knows_the_commands():
    program = Path(sys.executable).with_name("tunekit")
    variables = {"_TUNEKIT_COMPLETE": "complete_bash", "COMP_WORDS": "tunekit s", "COMP_CWORD": "1"}
    done = subprocess.run([program], capture_output=True, text=True, env=os.environ | variables, check=False)
    assert done.stdout.split() == ["sft", "simpo", "schema"]


# ---- init, schema ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS.names)
def test_init_writes_a_recipe_that_loads(run, tmp_path, method):
    printed = run("init", method)
    assert (printed.exit_code, printed.stdout) == (0, METHODS.load(method).RECIPE)
    assert files() == []
    (tmp_path / "r.yaml").write_text(printed.stdout, encoding="utf-8")
    assert load(tmp_path / "r.yaml").method == method


def test_init_writes_a_file_and_the_schema_beside_it(run, tmp_path):
    written = run("init", "sft", "-o", tmp_path / "new" / "r.yaml")
    assert written.exit_code == 0
    assert "tunekit sft " in written.stdout
    text = (tmp_path / "new" / "r.yaml").read_text()
    assert text == "# yaml-language-server: $schema=./tunekit.schema.json\n" + METHODS.load("sft").RECIPE
    assert load(tmp_path / "new" / "r.yaml").method == "sft"
    assert json.loads((tmp_path / "new" / "tunekit.schema.json").read_text()) == json.loads(run("schema").stdout)


def test_init_does_not_overwrite(run, tmp_path):
    kept = tmp_path / "work" / "mine.yaml"
    kept.write_text("mine")
    refused = run("init", "sft", "-o", "mine.yaml")
    assert refused.exit_code == 2
    assert "the file exists already" in refused.stderr
    assert kept.read_text() == "mine"
    assert files() == ["mine.yaml"]


def test_init_of_an_unknown_method(run):
    refused = run("init", "sftt")
    assert refused.exit_code == 2
    assert "did you mean 'sft'?" in refused.stderr


def test_schema_has_every_block(run):
    schema = json.loads(run("schema").stdout)
    blocks = {"method", "model", "adapter", "data", "train", "eval", "launch", "guards", "output", *METHODS.names}
    assert set(schema["properties"]) == blocks
    one = json.loads(run("schema", "--method", "sft").stdout)
    assert set(one["properties"]) == blocks - set(METHODS.names) | {"sft"}
    assert run("schema", "--method", "nope").exit_code == 2


# ---- plan, data, runs, doctor ----------------------------------------------------------------------------------------


def test_plan_shows_all_and_writes_nothing_but_the_cache(run, recipe, tmp_path):
    before = files()
    shown = run("plan", recipe, *SMALL)
    assert shown.exit_code == 0, shown.output
    lines = dict(line.strip().split("  ", 1) for line in shown.stdout.splitlines() if "  " in line.strip())
    # 60 rows, a twentieth of them held out: 57 to train, 2 steps of 32
    assert lines["examples"].split("(")[0].strip() == "57 to train"
    assert lines["examples"].endswith("3 held out")
    assert lines["global batch"].split("=")[0].strip() == "32"
    assert lines["steps"].strip() == "2"
    assert lines["run folder"].strip() == "runs/recipe"
    assert files() == before
    assert any(name.endswith("key.json") for name in files(tmp_path / "home"))


def test_plan_as_json_is_only_json(run, recipe):
    shown = run("plan", recipe, *SMALL, "--json")
    assert shown.exit_code == 0, shown.output
    *events, last = [json.loads(line) for line in shown.stdout.splitlines()]
    assert all("event" in event for event in events)
    assert last["plan"]["recipe"]["data"]["max_length"] == 64
    assert last["data"]["examples"] == 57


def test_plan_without_the_cache_leaves_nothing(run, recipe, tmp_path):
    assert run("plan", recipe, *SMALL, "--set", "data.cache=false").exit_code == 0
    assert files() == ["recipe.yaml"]
    assert files(tmp_path / "home") == []


def test_preview_marks_what_is_trained(run, recipe):
    shown = run("data", "preview", recipe, "--rows", "2", "--skip", "1")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("<|im_start|>assistant") == 2
    assert shown.stdout.count("«") == shown.stdout.count("»") == 2
    assert all("<|im_end|>" in part.split("»")[0] for part in shown.stdout.split("«")[1:])
    assert "builtin:instructions[train]:2" in shown.stdout
    assert "builtin:instructions[train]:4" not in shown.stdout


def test_the_life_of_the_cache(run, recipe, tmp_path):
    home = str(tmp_path / "home")
    assert "0 kept" in run("data", "cache", "list").stdout
    assert "nothing like it" in run("data", "cache", "why", recipe, *SMALL).stdout
    run("plan", recipe, *SMALL)
    assert run("data", "cache", "why", recipe, *SMALL).stdout.startswith(f"prepared: {home}")
    changed = run("data", "cache", "why", recipe, *SMALL, "--set", "data.max_length=72").stdout
    assert "max_length: 64 -> 72" in changed
    listed = run("data", "cache", "list").stdout
    assert "1 kept" in listed
    assert "builtin:instructions[train]" in listed
    assert "deleted 0" in run("data", "cache", "clear", "--older-than", "1").stdout
    assert "deleted 1" in run("data", "cache", "clear").stdout
    assert "0 kept" in run("data", "cache", "list").stdout


def test_plan_names_packing_attention_kernels_and_compile(run, recipe):
    lines = run("plan", recipe, *SMALL, "--set", "model.attention=sdpa").stdout.splitlines()
    (line,) = [line.split(maxsplit=2) for line in lines if line.startswith("  speed settings")]
    assert line[2] == "packing off, attention sdpa, kernels none, compile off"
    lines = run("plan", recipe, *SMALL, "--set", "data.packing=true", "--set", "train.compile=on").stdout.splitlines()
    (line,) = [line.split(maxsplit=2) for line in lines if line.startswith("  speed settings")]
    assert line[2] == "packing on, attention auto (without padding if the model allows), kernels none, compile on"


def test_plan_names_the_bits_of_the_weights_and_where_an_adapter_goes_on_from(run, recipe):
    pytest.importorskip("bitsandbytes")
    Path("old").mkdir()
    told = {"peft_type": "LORA", "base_model_name_or_path": "builtin:tiny", "r": 8, "target_modules": ["q_proj"]}
    Path("old/adapter_config.json").write_text(json.dumps(told))
    Path("old/adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    sets = ["model.name=builtin:tiny", "model.quantize={kind: bnb, bits: 8}", "adapter={kind: lora, start: old}"]
    shown = run("plan", recipe, *SMALL, *(word for one in sets for word in ("--set", one)))
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    lines = dict(line.split(maxsplit=1) for line in lines if line.startswith("  "))
    assert lines["model"] == "builtin:tiny in float32, its linear layers in 8 bits (bnb)"
    assert lines["adapter"] == "lora, which goes on from old"


MISSING = ["--set", "data.train.0.path=trian.jsonl", "--set", 'data.eval=[{path: "evla.jsonl"}]']


@pytest.mark.parametrize("words", [["sft"], ["sft", "--resume"], ["sft", "-o", "out"], ["plan"], ["data", "preview"]])
def test_a_missing_data_path_leaves_nothing_behind(run, recipe, words):
    Path("train.jsonl").touch()
    before = files()
    refused = run(*words, recipe, *MISSING)
    assert refused.exit_code == 2, refused.output
    places = f"in the recipe's folder, which is also the working folder ({Path.cwd()})"
    assert f"there is no 'trian.jsonl' {places}" in refused.stderr
    assert "did you mean 'train.jsonl'?" in refused.stderr
    assert "data.train.0.path" in refused.stderr and "data.eval.0.path" in refused.stderr  # all at once
    assert files() == before and not Path("out").exists() and not Path("runs").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("model.name", "./no/model"), ("model.tokenizer", "./no"), ("model.chat_template", "no.jinja")]
)
def test_a_missing_model_leaves_nothing_behind(run, recipe, key, value):
    refused = run("sft", recipe, "--json", "--set", f"{key}={value}")
    (problem,) = json.loads(refused.stdout.splitlines()[-1])["problems"]
    assert (refused.exit_code, problem["where"]) == (2, key)
    assert value in problem["what"]
    assert not Path("runs").exists()


def test_a_run_folder_is_previewed_by_the_hint_that_is_shown_after_a_run(run, monkeypatch):
    Path("recipes").mkdir()
    row = {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "eins"}]}
    Path("recipes/rows.jsonl").write_text((json.dumps(row) + "\n") * 4)
    data = "data: {train: [{path: rows.jsonl}], max_length: 64}"
    Path("recipes/r.yaml").write_text(f"method: sft\n{data}\ntrain: {{max_steps: 1, batch_size: 2, threads: 1}}\n")
    done = run("sft", "recipes/r.yaml", "-o", "my runs/x")
    assert done.exit_code == 0, done.output
    hint = next(line.split("tunekit ")[1] for line in done.stdout.splitlines() if "data preview" in line)
    shown = run(*shlex.split(hint))
    assert shown.exit_code == 0, shown.output
    assert "«eins<|im_end|>»" in shown.stdout
    assert run("data", "preview", "recipes").exit_code == 2  # a folder, but of no run


def test_a_run_that_fails_tells_how_far_it_came(run, recipe, monkeypatch):
    def trained(job, folder, *_):
        folder.metrics.write_text('{"step": 1, "loss": 3.5}\n')
        raise MachineError("out of luck")

    monkeypatch.setattr("tunekit.train.pipeline._trained", trained)
    failed = run("sft", recipe, *SMALL, "--set", "train.epochs=3", "-o", "out")
    assert failed.exit_code == 4
    assert "tunekit runs show out" in failed.stderr
    record = json.loads(Path("out/record.json").read_text())
    # 57 rows in batches of 32: 2 steps a pass
    assert record["progress"] == {
        "step": 1, "planned_steps": 6, "loss": 3.5, "loss_step": 1, "checkpoint": None, "command": "tunekit resume out",
    }  # fmt: skip
    shown = run("runs", "show", "out").stdout
    assert "It came to step 1 of 6. The last logged loss is 3.500, of step 1." in shown
    assert "tunekit resume out" in shown


def test_runs_list_of_nothing(run):
    assert run("runs", "list").stdout.strip() == "no runs here yet"
    shown = run("runs", "show", ".")
    assert shown.exit_code == 2
    assert "there is no record.json" in shown.stderr


def test_doctor_names_what_is_missing(run, monkeypatch):
    shown = run("doctor")
    assert shown.exit_code == 0, shown.output
    for name in ("torch", "transformers", "processor", "disk", "data cache"):
        assert f"ok  {name}" in shown.stdout
    monkeypatch.setattr("tunekit.cli.doctor.OPTIONAL", {"no_such_package": ("nothing", "pip install 'x[y]'")})
    assert "not installed; for nothing: pip install 'x[y]'" in run("doctor").stdout
    monkeypatch.setattr("tunekit.cli.doctor.REQUIRED", ("no_such_package",))
    lacking = run("doctor")
    assert lacking.exit_code == 4
    assert "NO  no_such_package" in lacking.stdout


# ---- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nope"], "No such command"), (["sft"], "Missing argument"), (["sft", "r.yaml", "--nope"], "No such option"),
        (["sft", "r.yaml", "-n", "0"], "Invalid value"), (["data", "preview", "r.yaml", "-r", "x"], "Invalid value"),
        (["sft", "none.yaml"], "there is no such recipe"), (["runs", "show", "nowhere"], "there is no record.json"),
        (["plan", "recipe.yaml", "--set", "train.sede=1"], "did you mean 'seed'?"),
        (["pretrain", "recipe.yaml"], "this recipe is for `sft`"),
        (["sft", "recipe.yaml", "--quiet", "--json"], ""),
        (["sft", "recipe.yaml", "-o", "."], "is not empty"),
    ],
)  # fmt: skip
def test_wrong_input_is_exit_2(run, recipe, words, message):
    refused = run(*words)
    assert refused.exit_code == 2, refused.output
    assert message in refused.stderr
    assert "Traceback" not in refused.output


def test_an_error_as_json_is_one_event(run, recipe):
    refused = run("sft", recipe, "--json", "--set", "train.sede=1", "--set", "train.epochs=0")
    assert refused.exit_code == 2
    (event,) = [json.loads(line) for line in refused.stdout.splitlines()]
    assert (event["event"], event["exit_code"]) == ("error", 2)
    assert {problem["where"] for problem in event["problems"]} == {"--set train.sede", "--set train.epochs"}


@pytest.mark.parametrize("name", ["it's here", 'a "b"', "back\\slash", "tab\there", "ünïcode", "a: b # c", "null"])
def test_output_folders_of_any_name(run, recipe, tmp_path, monkeypatch, name):
    seen = []
    fail = lambda recipe, path, **_: seen.append(recipe.output.dir) or 1 / 0  # noqa: E731
    monkeypatch.setattr("tunekit.cli.train.make_plan", fail)
    assert run("sft", recipe, "-o", name).exit_code == 1
    assert seen == [name]


def failing(kind):
    def make_plan(recipe, path, **_):
        raise kind("out of luck")

    return make_plan


def test_an_unforeseen_exception_is_called_a_bug(run, recipe, monkeypatch):
    monkeypatch.setattr("tunekit.cli.recipe.make_plan", failing(ZeroDivisionError))
    failed = run("plan", recipe)
    assert failed.exit_code == 1
    assert "a bug in tunekit" in failed.stderr
    assert "ZeroDivisionError: out of luck" in failed.stderr
    assert "test_cli.py:" in failed.stderr
    assert "--debug" in failed.stderr
    assert "Traceback" not in failed.stderr
    shown = run("plan", recipe, "--debug")
    assert shown.exit_code == 1
    assert "Traceback (most recent call last)" in shown.stderr


@pytest.mark.parametrize("kind", [MemoryError, OSError, PermissionError])
def test_what_the_machine_does_is_exit_4(run, recipe, monkeypatch, kind):
    monkeypatch.setattr("tunekit.cli.recipe.make_plan", failing(kind))
    failed = run("plan", recipe)
    assert failed.exit_code == 4
    assert f"{kind.__name__}: out of luck" in failed.stderr


def test_ctrl_c_is_exit_130(run, recipe, monkeypatch):
    monkeypatch.setattr("tunekit.cli.recipe.make_plan", failing(KeyboardInterrupt))
    stopped = run("plan", recipe)
    assert stopped.exit_code == 130
    assert "stopped" in stopped.stderr
    assert "Traceback" not in stopped.stderr


def test_a_signal_to_the_process_is_exit_130(recipe):
    os.mkfifo("pipe.yaml")  # reading it waits until somebody writes
    with subprocess.Popen(
        [sys.executable, "-m", "tunekit", "plan", "pipe.yaml"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in what a shell starts with `&`
    ) as running:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:  # succeeds once the program has the pipe open
                handle = os.open("pipe.yaml", os.O_WRONLY | os.O_NONBLOCK)
                break
            except OSError:
                time.sleep(0.05)
        time.sleep(0.5)  # a signal between opening and reading would be heeded only after the reading
        running.send_signal(signal.SIGINT)
        try:
            _, errors = running.communicate(timeout=30)
        finally:
            running.kill()  # or leaving the block would wait for ever
        os.close(handle)
    assert running.returncode == 130, errors
    assert errors == b"stopped\n"


def test_a_reader_that_leaves_is_no_error():
    program = f"{sys.executable} -m tunekit schema | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.stdout.strip() == "0"
