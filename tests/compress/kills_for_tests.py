"""`tunekit quantize` that is killed at a call to the file system: a server imports everything once and forks each run.

The shim that counts and kills is that of tests/train/crash_shim.c. What the program does in fresh processes is done in
the one that is killed, so that every write is counted.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

TRAIN = Path(__file__).parents[1] / "train"
MODES = ("before", "torn", "after")


class Server:
    """The process that forks runs; ``home`` holds its log."""

    def __init__(self, home, shim):
        environment = os.environ | {"LD_PRELOAD": str(shim), "HF_HUB_OFFLINE": "1", "TMPDIR": str(home)}
        environment |= {"TOKENIZERS_PARALLELISM": "false", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.home, self.errors = home, (home / "server.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.errors, env=environment, text=True,
        )  # fmt: skip

    def run(self, argv, below, n=0, mode="before", log=""):
        """The exit code of `tunekit *argv`, or minus the signal; it is killed at the n-th call below a folder.

        ``mode``: before the call, after it, or torn: in the middle of a write. ``log``: gets one line for every call.
        """
        request = {"argv": [str(word) for word in argv], "below": str(below), "n": n, "mode": mode, "log": str(log)}
        return self._ask(request | {"said": str(self.home / "run.log")})

    def warm(self, argv):
        """Runs `tunekit *argv` in the server itself, which has then imported and worked out what every run needs."""
        assert self._ask({"argv": [str(word) for word in argv]}) == 1, "a server with threads must not fork"

    def _ask(self, request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def said(self):
        """What the last run wrote to the terminal."""
        return (self.home / "run.log").read_text(errors="replace")

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()
        self.errors.close()


def serve():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(1)
    from tunekit.cli.app import app
    from tunekit.compress import fresh

    def together(module, job, doing):
        answer = importlib.import_module(module).work(json.loads(json.dumps(dict(job))))
        return answer | {"peak_memory": 1 << 20}

    fresh.run = together
    for line in sys.stdin:
        request = json.loads(line)
        if "below" not in request:
            with suppress(SystemExit):
                app(request["argv"])
            gc.collect()
            gc.freeze()
            print(sum(1 for _ in Path("/proc/self/task").iterdir()), file=answers, flush=True)
            continue
        child = os.fork()
        if child == 0:
            _child(request, app)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _child(request, app):
    code = 70
    try:
        said = os.open(request["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(said, 1)
        os.dup2(said, 2)
        shim = ctypes.CDLL(None)
        mode, log = MODES.index(request["mode"]), request["log"]
        shim.crash_arm(request["below"].encode(), ctypes.c_long(request["n"]), mode, log.encode())
        try:
            app(request["argv"])
        except SystemExit as end:
            code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
