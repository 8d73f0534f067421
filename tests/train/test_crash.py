"""Runs are killed at every write of a save, at random moments and by signals, and lose power; none may notice after.

T1, T2, T2b and T5 of the reliability tests. A run that goes on must end with the same weights, rows, metrics and file
names as one that nobody disturbed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crash_for_tests import LORA, MODES, Case, Server, build_shim

from tunekit.runs.layout import checkpoints
from tunekit.train.checkpoint import verify

SEED = 20_251
EVAL = {"data": {"eval": {"count": 5}}, "eval": {"every": 2, "batch_size": 4}}
RECIPES = {
    "full": ("sft", {}),
    "lora": ("sft", {"adapter": LORA}),
    "pretrain": ("pretrain", {"data": {"packing": True, "max_length": 64}}),
    "evaluated": ("sft", EVAL),
    "long": ("sft", {"train": {"max_steps": 60, "save_every": 1000}}),
}
METHODS = ("full", "lora", "pretrain")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The fork server with the shim, warmed up."""
    home = tmp_path_factory.mktemp("crash")
    shim = build_shim(home)
    if shim is None:
        pytest.skip("no C compiler: the shim that counts and kills cannot be built")
    server = Server(home / "server", shim)
    warm = Case(server, home / "warm")
    server.warm(warm.argv(warm.run_dir))
    yield server
    server.close()


@pytest.fixture(scope="module")
def case_of(server, tmp_path_factory):
    """Cases by name, each with its undisturbed run, made once."""
    made = {}

    def get(name):
        if name not in made:
            method, blocks = RECIPES[name]
            made[name] = Case(server, tmp_path_factory.mktemp("case") / name, method, **blocks)
        return made[name]

    return get


# ---- T2: killed at the n-th call


def armed(case, **how):
    return {"arm": {"below": [str(case.run_dir)], **how}}


def calls_of(case, since, step=0, **how):
    """Every call of that part of the run: (number, what, bytes, path below the run folder)."""
    log = case.folder / "calls.tsv"
    log.unlink(missing_ok=True)
    case_end = how.pop("run", case.begin)(hooks=armed(case, since=since, step=step, log=str(log)) | how)
    assert case_end.code in (0, 143), case_end.text
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    return [(int(n), what, int(size), os.path.relpath(path, case.run_dir)) for n, what, size, path in lines]


def kills(calls):
    """Before every call; in the middle of every write; and after safetensors' write, whose rename the shim misses."""
    for number, what, size, path in calls:
        yield number, "before"
        if "write" in what and size > 1:
            yield number, "torn"
        if "write" in what and "/.tmp" in path:
            yield number, "after"


def survived(case, steps):
    """Goes on with a run that was cut off; nothing may differ, and it goes on from one of these steps."""
    end = case.go_on()
    assert end.code == 0, end.text
    assert not case.differences() and not end.survivors
    assert not list(case.run_dir.rglob("*.damaged*")) and "is not used" not in end.text
    resumed = json.loads((case.run_dir / "record.json").read_text())["resumed"]
    assert not resumed or resumed[-1]["step"] in steps, resumed
    return resumed[-1]["step"] if resumed else None


def killed_at(case, since, step, number, mode, steps):
    end = case.begin(hooks=armed(case, since=since, step=step, n=number, mode=mode))
    assert end.code == -signal.SIGKILL, f"call {number} was not reached: {end.text}"
    return survived(case, steps)


def each(points, trial):
    """What the trial of each point returned; all are made before the failures are shown."""
    results, failures = [], []
    for point in points:
        try:
            results.append(trial(*point))
        except AssertionError as failure:
            failures.append(f"{point}: {str(failure)[:500]}")
    assert not failures, f"{len(failures)} of {len(points)}:\n" + "\n".join(failures)
    return results


def test_all_bytes_of_a_save_pass_the_shim(case_of):
    """So no write goes uncounted: the sums of the writes are the sizes of the files."""
    for name in METHODS:
        case = case_of(name)
        calls = calls_of(case, "save", 4)
        written, final = {}, {}
        for _, what, size, path in calls:
            if "write" in what and ".staging" in path:
                file = Path(path).name
                key = file.rsplit(".", 1)[0].removeprefix(".") if file.startswith(".") else file
                written[key or "weights"] = written.get(key or "weights", 0) + size
        case.begin(hooks={"ask": {"step": 4, "number": signal.SIGTERM}})
        for path in checkpoints(case.run_dir / "checkpoints")[-1].iterdir():
            name_of = "weights" if path.suffix == ".safetensors" else path.name
            final[name_of] = final.get(name_of, 0) + path.stat().st_size
        same = {file: (written.get(file), size) for file, size in final.items() if written.get(file) != size}
        # these hold times and random names, so their length differs by some bytes from run to run
        assert set(same) <= {"rank-0.json", "MANIFEST.json", "trainer_state.json"}, same
        print(f"measured: a save of {name} makes {len(calls)} calls, {len(list(kills(calls)))} kills")


def of_interest(calls, every):
    """The kills around what makes a checkpoint visible or removes one, and some of all the others."""
    points = list(kills(calls))
    names = {n: (what, path) for n, what, _, path in calls}
    chosen = [
        (n, mode)
        for n, mode in points
        if (names[n][0] == "rename" and ("MANIFEST" in names[n][1] or "checkpoints" in names[n][1]))
        or ("MANIFEST" in names[n][1] and mode == "torn")
    ]
    return sorted({*chosen, *points[every // 2 :: every]})


@pytest.mark.parametrize(("name", "every"), [("full", 40), ("lora", 60), ("pretrain", 90)])
def test_killed_in_a_save(name, every, case_of):
    case = case_of(name)
    points = of_interest(calls_of(case, "save", 4), every)
    steps = each(points, lambda *point: killed_at(case, "save", 4, *point, (2, 4)))
    assert set(steps) == {2, 4}  # some died before the checkpoint was in place, some after


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_killed_at_every_call_of_a_save(name, case_of):
    case = case_of(name)
    points = list(kills(calls_of(case, "save", 4)))
    began = time.perf_counter()
    steps = each(points, lambda *point: killed_at(case, "save", 4, *point, (2, 4)))
    assert {2, 4} == set(steps)
    spent = (time.perf_counter() - began) / len(points)
    counted = ", ".join(f"{sum(m == mode for _, m in points)} {mode}" for mode in MODES)
    older = steps.count(2)
    print(f"measured: {name}: {len(points)} kills ({counted}), {older} went on from step 2, {spent:.1f} s each")


@pytest.mark.parametrize("every", [60, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_in_a_save_while_training_goes_on(every, case_of):
    """The save is not waited for: its calls and those of the steps after it come in any order."""
    case = case_of("full")
    points = list(kills(calls_of(case, "step", 4)))[::every]

    def trial(number, mode):
        end = case.begin(hooks=armed(case, since="step", step=4, n=number, mode=mode))
        assert end.code in (0, -signal.SIGKILL), end.text  # some calls are the fewer when training is the faster
        return survived(case, (0, 2, 4, 6)), end.code  # 0: the save of step 2 may not be in its place yet

    ends = each(points, trial)
    print(f"measured: {len(points)} kills from step 4 on, {sum(code == 0 for _, code in ends)} calls were not made")


@pytest.mark.parametrize("every", [14, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_killed_after_training(name, every, case_of):
    """In the export of the model, the record, the report and the release of the lock."""
    case = case_of(name)
    points = list(kills(calls_of(case, "trained")))[every - 1 :: every]
    each(points, lambda *point: killed_at(case, "trained", 0, *point, (6,)))
    print(f"measured: {name}: {len(points)} kills after training")


@pytest.mark.parametrize(
    ("since", "step", "what", "path"),
    [("start", 0, "write", ".plan.json."), ("trained", 0, "write", ".report.html."),
     ("save", 6, "rename", "checkpoints/.deleted-")],
    ids=["the plan", "the report", "the rotation at the last save"],
)  # fmt: skip
def test_nothing_is_left(since, step, what, path, case_of):
    case = case_of("full")
    calls = calls_of(case, since, step)
    number = next(n for n, made, _, on in calls if made == what and on.startswith(path))
    killed_at(case, since, step, number, "before", (0, 6))


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_anywhere_before_the_first_save(every, case_of):
    """From the first call in the run folder on: lock, recipe, plan, record, ledger, rehearsal, the first lines."""
    case = case_of("full")
    calls = calls_of(case, "start")
    first = next(n for n, _, _, path in calls if path.startswith(".staging/step-"))
    points = [point for point in kills(calls) if point[0] <= first][every - 1 :: every]
    each(points, lambda *point: killed_at(case, "start", 0, *point, (0,)))
    print(f"measured: {len(points)} kills before the first save")


@pytest.fixture(scope="module")
def replacing(case_of):
    """A run that goes on from a stop in an evaluation, is stopped in it again, and saves its step a second time.

    Its trial, the kills, and the numbers of the two renames of the swap.
    """
    case = case_of("evaluated")
    kept = case.folder / "stopped"
    assert case.begin(hooks={"ask": {"step": 4, "number": signal.SIGTERM}}).code == 143
    case.run_dir.rename(kept)

    def stopped_again(**how):
        shutil.rmtree(case.run_dir, ignore_errors=True)
        shutil.copytree(kept, case.run_dir)
        return case.go_on(**how)

    def trial(number, mode):
        assert stopped_again(hooks=armed(case, since="again", n=number, mode=mode)).code == -signal.SIGKILL
        return survived(case, (4,))

    calls = calls_of(case, "again", run=stopped_again)
    swap = [n for n, what, _, path in calls if what.startswith("rename") and path.startswith("checkpoints/")]
    assert len(swap) == 2  # the new one comes to its place, the old one goes
    return trial, list(kills(calls)), swap


@pytest.mark.parametrize("every", [30, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_while_a_checkpoint_of_the_same_step_is_replaced(every, replacing):
    """It is the only one, and there is no moment without it."""
    trial, points, swap = replacing
    points = [point for i, point in enumerate(points) if i % every == 0 or point[0] in swap]
    each(points, trial)
    print(f"measured: {len(points)} kills while a checkpoint is replaced")


# ---- T2b: the power fails


def power_cuts(case, **how):
    out = case.folder / "cuts"
    shutil.rmtree(out, ignore_errors=True)
    case.begin(hooks={"lose_power": {"root": str(case.run_dir), "out": str(out), "step": 4, **how}})
    return sorted(out.iterdir())


def after_cut(case, cut):
    shutil.rmtree(case.run_dir)
    shutil.copytree(cut, case.run_dir)
    return case.go_on()


def cut_and_gone_on_with(case, cuts):
    """Goes on after each power cut; returns the steps it went on from."""

    def trial(cut):
        end = after_cut(case, cut)
        assert end.code == 0 and "is not used" not in end.text, end.text
        assert not case.differences()
        return [part["step"] for part in json.loads((case.run_dir / "record.json").read_text())["resumed"]]

    return each([(cut,) for cut in cuts], trial)


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_power_cut_in_a_save(name, every, case_of):
    case = case_of(name)
    cuts = power_cuts(case)
    assert {cut.name.split("-")[1] for cut in cuts} == {"lost", "names"}
    steps = [made[-1] for made in cut_and_gone_on_with(case, cuts[::-every])]
    assert set(steps) == {2, 4}
    print(f"measured: {name}: {len(steps)} power cuts, {steps.count(2)} went on from step 2")


def test_the_simulated_power_cut_bites(case_of):
    """Without the fsyncs of the files, the newest checkpoint is there with empty files: skipped, and the older used."""
    case = case_of("full")
    cut = next(cut for cut in power_cuts(case, flushed=False) if (cut / "checkpoints" / "step-000004").exists())
    assert (cut / "checkpoints" / "step-000004" / "model.safetensors").stat().st_size == 0
    end = after_cut(case, cut)
    assert end.code == 4 or "step-000004 is not used" in end.text, end.text


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_power_cut_after_training(every, case_of):
    case = case_of("full")
    cut_and_gone_on_with(case, power_cuts(case, since="trained")[::-every])


# ---- T1: killed at random moments


@pytest.mark.parametrize(
    ("name", "trials"), [("full", 4), *(pytest.param(name, 20, marks=pytest.mark.slow) for name in METHODS)]
)
def test_killed_at_random_moments(name, trials, case_of):
    case, draw = case_of(name), random.Random(f"{SEED} {name}")
    print(f"measured: seed {SEED} {name}")
    longest = 1.1 * case.begin().seconds
    died = again = 0
    for _ in range(trials):
        end = case.begin(signals=[[draw.uniform(0, longest), signal.SIGKILL]])
        died += end.code == -signal.SIGKILL
        for _ in range(3):
            if draw.random() < 2 / 3:
                break
            end = case.go_on(signals=[[draw.uniform(0, longest), signal.SIGKILL]])
            again += end.code == -signal.SIGKILL
            assert end.code in (0, -signal.SIGKILL), end.text
        end = case.go_on()
        assert end.code == 0, end.text
        assert not case.differences() and not end.survivors
    print(f"measured: {name}: {died} of {trials} runs killed, {again} more kills of runs that went on")
    assert died


# ---- T5: asked to end


@pytest.mark.parametrize("trials", [2, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_asked_to_end_at_a_random_step(number, trials, case_of):
    case, draw = case_of("long"), random.Random(SEED + trials)
    whole = case.reference_end.seconds
    for step in draw.sample(range(1, 60), trials):
        when = draw.choice(["on_step_begin", "on_step_end", "on_pre_optimizer_step", "on_log"])
        end = case.begin(hooks={"ask": {"step": step, "number": number, "when": when}})
        assert end.code == 128 + number and end.seconds < 10 + whole, end.text
        assert "with a checkpoint" in end.text and "tunekit resume" in end.text
        found = verify(checkpoints(case.run_dir / "checkpoints")[-1])
        assert found.step in (step, step + 1)
        assert not (case.run_dir / "model").exists() and not (case.run_dir / ".staging").exists()
        survived(case, (found.step,))


def test_the_second_interrupt_ends_at_once_inside_a_long_step(case_of):
    case = case_of("full")
    end = case.begin(hooks={"ask_twice": {"step": 3}})
    assert end.code == -signal.SIGINT and end.seconds < 60  # the step would take 1,000 s
    survived(case, (0, 2))  # the checkpoint of step 2 is put in place beside step 3, and on a busy machine not by then


def test_real_processes_end_with_the_codes_of_the_signals(case_of):
    """`python -m tunekit` and the console script, with nothing in between."""
    case = case_of("long")
    script = Path(sys.executable).with_name("tunekit")
    environment = os.environ | {"HF_HOME": str(case.server.home / "hf"), "HF_HUB_OFFLINE": "1"}
    begun = []
    for number, start in ((signal.SIGTERM, [sys.executable, "-m", "tunekit"]), (signal.SIGINT, [str(script)])):
        out = case.folder / f"asked-{number.name}"
        command = [*start, *map(str, case.argv(out)), "--set", "train.max_steps=100000"]
        process = subprocess.Popen(
            command, cwd=case.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        begun.append((number, out, process))
    waiting = list(begun)
    while waiting:
        for each in list(waiting):
            number, out, process = each
            samples = out / "samples.jsonl"
            if samples.exists() and samples.stat().st_size:
                process.send_signal(number)
                waiting.remove(each)
            assert process.poll() is None or each not in waiting, process.stderr.read()
        time.sleep(0.02)
    for number, out, process in begun:
        _, told = process.communicate(timeout=60)
        assert process.returncode == 128 + number, told
        assert "with a checkpoint; go on with `tunekit resume" in told and "Traceback" not in told
        assert verify(checkpoints(out / "checkpoints")[-1]).step >= 1
        assert not (out / "model").exists() and not (out / ".lock").exists()
