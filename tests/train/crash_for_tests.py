"""Runs that are killed: a server imports everything once and forks a child for each run; the shim kills it at a call.

The child runs the real command line (`tunekit.cli.app`), so exit codes and texts are those of the program. Shared by
test_crash.py and benchmarks/soak.py.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PATIENCE = 120  # seconds after which a run counts as hanging
MODES = ("before", "torn", "after")
LINGER = 15  # seconds that ranks and loaders may outlive a killed parent
TIMES = ("seconds", "tokens_per_second", "trained_tokens_per_second", "memory_gb", "mfu", "matmul_tflops")
WORDS = ["red", "blue", "seven", "cat", "river", "stone", "apple", "quickly", "under", "the", "moon", "walks", "sings"]


def build_shim(folder):
    """The compiled shim; None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    built = folder / "crash_shim.so"
    command = [compiler, "-O1", "-Wall", "-shared", "-fPIC", "-o", str(built), str(HERE / "crash_shim.c"), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return built


# ---- the side that asks


@dataclass(frozen=True)
class End:
    """How a run ended: its exit code, or minus the signal that killed it; ``survivors`` had to be killed."""

    code: int
    seconds: float
    text: str
    survivors: int
    descriptors: int
    cpu: float


class Server:
    """The process that forks runs; ``home`` holds its data cache and its log."""

    def __init__(self, home, shim=None):
        (home / "tmp").mkdir(parents=True)
        self.home, self.trials, self.busy = home, 0, 0.0
        environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        environment |= {"HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment |= {"TMPDIR": str(home / "tmp")}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment |= {"JE_ARROW_MALLOC_CONF": "background_thread:false"}  # a process that forks must have one thread
        environment |= {"LD_PRELOAD": str(shim)} if shim else {}
        self.log = (home / "server.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "serve"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=environment, start_new_session=True,
        )  # fmt: skip

    def run(self, argv, **how):
        """Runs `tunekit *argv` in a child; what ``how`` may say stands at `_child` and `_watch`."""
        log = self.home / "run.log"
        self._ask({"argv": [str(word) for word in argv], "log": str(log), **how})
        answer = json.loads(self.process.stdout.readline())
        self.trials, self.busy = self.trials + 1, self.busy + answer["seconds"]
        return End(**answer, text=log.read_text(errors="replace"))

    def warm(self, argv):
        """Makes a run, and then imports in the server whatever it had to import."""
        modules = self.home / "modules.json"
        end = self.run(argv, modules=str(modules))
        self._ask({"imports": str(modules)})
        assert json.loads(self.process.stdout.readline())["threads"] == 1, "a server with threads must not fork"
        return end

    def _ask(self, request):
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()
        self.log.close()


def write_rows(path, count=23):
    """Conversations of one to three turns, ragged in length."""

    def words(start, number):
        return " ".join(WORDS[(start + i * 3) % len(WORDS)] for i in range(number))

    with path.open("w", encoding="utf-8") as file:
        for n in range(count):
            turns = [({"role": "user", "content": f"{n} {words(n, 1 + n % 4)}?"},
                      {"role": "assistant", "content": words(n * 5 + turn, 1 + (n + turn) % 5)})
                     for turn in range(1 + n % 3)]  # fmt: skip
            file.write(json.dumps({"messages": [message for turn in turns for message in turn]}) + "\n")


BASE = {
    "model": {"name": "builtin:random?layers=1&hidden=16&heads=2"},
    "data": {"max_length": 128, "max_drop_rate": 0.5},
    "train": {"max_steps": 6, "batch_size": 4, "learning_rate": 0.01, "warmup": 0, "log_every": 1, "threads": 1,
              "save_every": 2, "keep_checkpoints": 1},
    "eval": {"baseline": False},
}  # fmt: skip
LORA = {"kind": "lora", "r": 2, "alpha": 4, "dropout": 0.1}


class Case:
    """A recipe, the run of it that nobody disturbed, and how to run it again."""

    def __init__(self, server, folder, method="sft", **blocks):
        folder.mkdir(parents=True)
        self.server, self.folder, self.method = server, folder, method
        write_rows(folder / "rows.jsonl")
        recipe = {name: dict(block) for name, block in BASE.items()} | {"method": method}
        for name, block in blocks.items():
            recipe[name] = recipe.get(name, {}) | block
        recipe["data"]["train"] = [{"path": "rows.jsonl"}]
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(json.dumps(recipe))
        self.whole, self.run_dir = folder / "whole", folder / "run"
        self.reference_end = server.run(self.argv(self.whole))
        assert self.reference_end.code == 0, self.reference_end.text
        self.expected = found_in(self.whole)

    def argv(self, out, *more):
        return [self.method, self.recipe, "--output", out, *more]

    def begin(self, **how):
        """The run in a folder that is not there yet."""
        shutil.rmtree(self.run_dir, ignore_errors=True)
        return self.server.run(self.argv(self.run_dir), **how)

    def go_on(self, **how):
        return self.server.run(self.argv(self.run_dir, "--resume"), **how)

    def differences(self, without=frozenset()):
        """What of the run is not as in the undisturbed one; files of these names may be there or not."""
        found = found_in(self.run_dir)
        found["files"] = (found["files"] - without) | (self.expected["files"] & without)
        wrong = {name: value for name, value in self.expected.items() if found[name] != value}
        return [f"{name}: {_short(found[name], value)}" for name, value in wrong.items()]


def _short(found, expected):
    if isinstance(found, set):
        return f"more: {sorted(found - expected)}, less: {sorted(expected - found)}"
    return f"{str(found)[:300]} instead of {str(expected)[:300]}"


def found_in(run):
    """All that has to be equal: weights, rows seen, values logged, what the record says, the names of all files."""
    from tunekit.core.files import sha256_file

    record = json.loads((run / "record.json").read_text()) if (run / "record.json").exists() else {}
    metrics = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    names = {str(path.relative_to(run)) for path in run.rglob("*")}
    return {
        "status": (record.get("status"), record.get("exit_code")),
        "weights": {path.name: sha256_file(path) for path in sorted((run / "model").glob("*.safetensors"))},
        "samples": {path.name: path.read_text() for path in sorted(run.glob("samples*.jsonl"))},
        "metrics": [_without_times(json.loads(line)) for line in metrics],
        "training": _without_times(record.get("training")),
        "evaluation": _without_times(record.get("evaluation")),
        "files": {name for name in names if ".damaged" not in name},
    }  # fmt: skip


def _without_times(value):
    if isinstance(value, dict):
        return {name: _without_times(each) for name, each in value.items() if name not in TIMES}
    return [_without_times(each) for each in value] if isinstance(value, list) else value


# ---- the server


def serve():
    """Answers one line of JSON with one, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans come to this process, and are counted
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    import torch

    torch.set_num_threads(1)
    importlib.import_module("tunekit.cli.app")
    for line in sys.stdin:
        request = json.loads(line)
        if "imports" in request:
            for name in json.loads(Path(request["imports"]).read_text()):
                with suppress(Exception):
                    importlib.import_module(name)
            _fill_caches()
            gc.collect()
            gc.freeze()
            answer = {"threads": _count("/proc/self/task")}
        else:
            started = time.perf_counter()
            child = os.fork()
            if child == 0:
                _child(request)
            code, survivors, cpu = _watch(child, request)
            answer = {
                "code": code, "survivors": survivors, "descriptors": _count("/proc/self/fd"),
                "seconds": round(time.perf_counter() - started, 3), "cpu": round(cpu, 3),
            }  # fmt: skip
        print(json.dumps(answer), file=answers, flush=True)


def _count(folder):
    return sum(1 for _ in Path(folder).iterdir())


def _fill_caches():
    """What every run would work out anew, at half a second each."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from tunekit.data.cache import code_version

    get_checkpoint_conversion_mapping("llama")
    code_version()


def _watch(child, request):
    """Sends the signals of ``request["signals"]``, [seconds, number] each, and waits for the child and its children."""
    handle = os.pidfd_open(child)
    began = time.monotonic()
    for after, number in [*request.get("signals", []), [PATIENCE, signal.SIGABRT]]:
        if not select.select([handle], [], [], max(0.0, began + after - time.monotonic()))[0]:
            signal.pidfd_send_signal(handle, number)
    _, status, used = os.wait4(child, 0)
    os.close(handle)
    left, until = _orphans(), time.monotonic() + LINGER
    while left and time.monotonic() < until:
        time.sleep(0.02)
        left = _orphans()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), len(left), used.ru_utime + used.ru_stime


def _orphans():
    """Children that the run left to this process and that still live; the dead ones are buried."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _child(request):
    """One run. ``hooks``: functions of this module, by name, with their arguments, called before it begins."""
    code = 70
    try:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(Path(request["argv"][1]).parent)
        for name, arguments in request.get("hooks", {}).items():
            globals()[name](**arguments)
        from tunekit.cli.app import app

        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            app(request["argv"])
        except SystemExit as end:
            code = int(end.code or 0)
        except KeyboardInterrupt:  # outside of the program's own care, while it starts or ends
            traceback.print_exc()
            code = 130
        if "modules" in request:
            Path(request["modules"]).write_text(json.dumps(list(sys.modules)))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# ---- hooks: they run in the child


def _with_callback(**events):
    """Has every trainer call these functions, ``on_step_end`` and so on, with the number of steps done.

    Training waits for a checkpoint that is still being put in place before it tells of a save or of its end: then the
    calls of a save are the same every time. ``on_step_end`` and the others come while one may be under way.
    """
    from transformers import TrainerCallback

    from tunekit.train.session import Session

    def method(event, do):
        def called(self, args, state, control, **_):
            if event in ("on_save", "on_train_end"):
                self.trainer.finisher.wait()
            do(state.global_step)

        return called

    kind = type("Look", (TrainerCallback,), {event: method(event, do) for event, do in events.items()})
    build = Session.build

    def built(self):
        trainer, look = build(self), kind()
        look.trainer = trainer
        trainer.add_callback(look)
        return trainer

    Session.build = built


def arm(below, n=0, mode="before", log="", since="start", step=0):
    """Kills at the n-th call below some folders; n = 0 only counts.

    ``since``: from the start on, in the save of ``step``, from the end of that step on, once the run has trained, or
    again: in a save that replaces the checkpoint from which the run goes on. ``mode``: before the call, after it, or
    torn: in the middle of a write.
    """
    shim = ctypes.CDLL(None)

    def begin(_=None):
        shim.crash_arm("\n".join(below).encode(), ctypes.c_long(n), MODES.index(mode), log.encode())

    def at_step(done):
        if done == step:
            begin()

    if since == "start":
        begin()
    elif since == "save":
        _with_callback(on_step_end=at_step, on_save=lambda _: shim.crash_disarm())
    elif since == "step":
        _with_callback(on_step_end=at_step)
    elif since == "trained":
        _with_callback(on_train_end=begin)
    elif since == "again":
        _ask_again(begin)
    else:
        raise ValueError(since)


def _ask_again(begin):
    """SIGTERM in the evaluation that the run was stopped in before: it is cut again, and saved again at its step."""
    from tunekit.train.saving import Saving

    evaluate = Saving._evaluate_now

    def asked(self):
        begin()
        os.kill(os.getpid(), signal.SIGTERM)
        evaluate(self)

    Saving._evaluate_now = asked


def ask(step, number, when="on_step_end"):
    """The process gets a signal at a step."""

    def look(done):
        if done == step:
            os.kill(os.getpid(), number)

    _with_callback(**{when: look})


def ask_twice(step):
    """SIGINT, and a second one while the process is in a call that holds Python's lock and does not come back."""

    def look(done):
        if done == step:
            me = os.getpid()
            os.kill(me, signal.SIGINT)
            if os.fork() == 0:
                os.kill(me, signal.SIGINT)
                os._exit(0)
            ctypes.PyDLL(None).sleep(1000)

    _with_callback(on_step_begin=look)


def lose_power(root, out, since="save", step=0, flushed=True):
    """Keeps, after every fsync and rename of a save, what a power cut would leave: ``out/NNN-lost`` and ``NNN-names``.

    lost: nothing that was not flushed survives. names: every name survives, but no content that was not flushed.
    ``flushed`` false takes the fsyncs of a checkpoint's files away.
    """
    from tunekit.train import checkpoint

    disk = Disk(Path(root), Path(out))
    for name in ("fsync", "rename", "replace"):
        setattr(os, name, disk.observed(getattr(os, name)))
    if not flushed:
        checkpoint.flush_file = lambda path: None
    if since == "save":
        _with_callback(on_step_end=lambda done: disk.watch(done == step), on_save=lambda _: disk.watch(False))
    else:
        _with_callback(on_train_end=lambda _: disk.watch(True))


class Disk:
    """What is durable below ``root``, which itself is: contents and names as of their last fsync, by inode."""

    def __init__(self, root, out):
        self.root, self.out = root, out
        self.files, self.folders, self.pins, self.known = {}, {}, [], set()
        self.lock, self.watching, self.number = threading.RLock(), False, 0

    def watch(self, wanted):
        self.watching = wanted

    def observed(self, function):
        def call(*args, **kwargs):
            with self.lock:
                result = function(*args, **kwargs)
                if function.__name__ == "fsync":
                    self._flushed(args[0])
                if self.watching:
                    self._keep()
                return result

        return call

    def _flushed(self, handle):
        found = os.fstat(handle)
        self.pins.append(os.dup(handle))  # the inode of an open file is not given to another one
        path = f"/proc/self/fd/{handle}"
        if stat.S_ISDIR(found.st_mode):
            with os.scandir(handle) as entries:
                listing = {e.name: (e.inode(), e.is_dir(follow_symlinks=False)) for e in entries}
            self.folders[found.st_ino] = listing
            self.pins += [os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=handle) for name in listing]
        else:
            self.files[found.st_ino] = Path(path).read_bytes()

    def _keep(self):
        self.number += 1
        for kind, tree in (("lost", self._durable(self.root.stat().st_ino)), ("names", self._named(self.root))):
            state = repr((kind, tree))
            if state not in self.known:
                self.known.add(state)
                _write_tree(self.out / f"{self.number:03d}-{kind}", tree)

    def _durable(self, inode):
        listing = self.folders.get(inode, {})
        return {n: self._durable(at) if deep else self.files.get(at, b"") for n, (at, deep) in sorted(listing.items())}

    def _named(self, folder):
        return {
            path.name: self._named(path) if path.is_dir() else self.files.get(path.stat().st_ino, b"")
            for path in sorted(folder.iterdir())
        }


def _write_tree(folder, tree):
    folder.mkdir(parents=True)
    for name, value in tree.items():
        if isinstance(value, dict):
            _write_tree(folder / name, value)
        else:
            (folder / name).write_bytes(value)


if __name__ == "__main__":
    sys.path.remove(str(HERE))
    serve()
