"""Ranks that misbehave on demand: `train.worker` with a session of its own, and a launcher to be killed.

`python -m launch_for_tests PLAN DATA ...` is a rank; DATA/does.json names for each rank the method of `Session` that it
runs. Each writes its process number to DATA/rank-N.pid when it has begun. `python -m launch_for_tests launch PLAN DATA`
launches such ranks and ends with the code of what came of it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

from tunekit.core.errors import DataError, Stopped, TunekitError
from tunekit.plan.plan import Plan
from tunekit.train import launch as launching
from tunekit.train import worker
from tunekit.train.session import Outcome
from tunekit.train.signals import stop_signals

NAME = "launch_for_tests"


class Session:
    def __init__(self, plan, prepared, screen, *, stop, checkpoint, pulse):
        self.rank = int(os.environ["RANK"])
        self.plan, self.folder, self.screen, self.stop, self.pulse = plan, prepared.folder, screen, stop, pulse
        self.checkpoint = checkpoint

    def run(self):
        does = json.loads((self.folder / "does.json").read_text())[self.rank]
        return getattr(self, does)()

    def begun(self, pid=None, name=""):
        self.pulse("begun")
        beat = f"../.ranks/rank-{self.rank}"
        self.wait_for(beat)
        while "begun" not in (self.folder / beat).read_text():
            time.sleep(0.02)
        path = self.folder / f"rank-{self.rank}{name}.pid"
        path.with_suffix(".new").write_text(str(pid or os.getpid()))
        path.with_suffix(".new").rename(path)
        for rank in range(0 if name else self.plan.processes):
            self.wait_for(f"rank-{rank}.pid")

    def join(self):
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        self.value = torch.ones(1)
        dist.all_reduce(self.value)
        return dist

    def wait_for(self, name):
        while not (self.folder / name).exists():
            time.sleep(0.02)

    def reduces(self):
        """What training looks like: in step with the others, for ever."""
        dist = self.join()
        self.begun()
        for step in range(1_000_000):
            self.pulse(f"step {step}")
            dist.all_reduce(self.value)

    def joins(self):
        """Waits for nobody, but takes part."""
        self.join()
        self.begun()
        threading.Event().wait()

    def beats(self):
        """Busy for ever, on its own."""
        self.begun()
        for step in range(1_000_000):
            self.pulse(f"step {step}")
            time.sleep(0.02)

    def refuses(self):
        """An error of ours, while the others wait in a collective that this rank never joins."""
        dist = self.join()
        self.begun()
        self.pending = dist.all_reduce(self.value, async_op=True)
        raise DataError("row 7 is bad", where="rows.jsonl:7", fix="mend it")

    def crashes(self):
        """A bug, at the same place: the interpreter's own end waits for the collective then."""
        dist = self.join()
        self.begun()
        self.pending = dist.all_reduce(self.value, async_op=True)
        raise RuntimeError("tensor on fire\nand more")

    def leaves(self):
        """Ends without a word."""
        self.begun()
        os._exit(3)

    def crashes_after(self):
        """Its exception comes of the other rank's end; SIGTERM came while it was in a library."""
        came = []
        signal.signal(signal.SIGTERM, lambda *_: came.append(True))
        self.begun()
        while not came:
            time.sleep(0.02)
        raise RuntimeError("Connection closed by peer")

    def has_no_memory(self):
        self.begun()
        raise MemoryError

    def crashes_first(self):
        """The same, when the kernel is slow to come to that end."""
        self.begun()
        raise RuntimeError("Connection closed by peer")

    def is_killed_late(self):
        self.begun()
        self.wait_for("../.ranks/rank-0.failed")
        signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        while True:
            time.sleep(1)

    def has_a_child(self):
        """As a data loader has: a process in the rank's group."""
        child = subprocess.Popen(["sleep", "1000"])
        self.begun(child.pid, "-child")
        self.beats()

    def waits(self):
        """Hangs where Python code still can run."""
        self.begun()
        self.pulse("waiting for Godot")
        threading.Event().wait()

    def holds_the_gil(self):
        """Hangs where no other thread can run."""
        self.begun()
        while True:
            ctypes.PyDLL(None).sleep(1000)

    def stops(self):
        """As a session does: notes the signal, goes on to the end of the step, tells."""
        signals = []
        noted = signal.getsignal(signal.SIGTERM)

        def count(signum, frame):
            signals.append(signum)
            noted(signum, frame)

        signal.signal(signal.SIGTERM, count)
        with self.stop.deferred():
            self.begun()
            while self.stop.signum is None:
                time.sleep(0.02)
            time.sleep(0.6)  # three looks of the launcher: time for a second signal
        (self.folder / f"rank-{self.rank}.signals").write_text(json.dumps(signals))
        raise Stopped(self.stop.signum, "a checkpoint of step 7" if self.rank == 0 else "")

    def is_asked_by_another(self):
        """As `stops`, when only this rank was sent the signal."""
        self.begun()
        os.kill(os.getpid(), signal.SIGTERM)

    def finishes_though_asked(self):
        with self.stop.deferred():
            self.begun()
            while self.stop.signum is None:
                time.sleep(0.02)
        return Outcome(training={"steps": 5})

    def says_where_it_is(self):
        """What the libraries make of the launcher's variables."""
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        import torch

        ones = accelerator.reduce(torch.ones(1), "sum")
        found = {
            "type": str(accelerator.distributed_type), "processes": accelerator.num_processes, "sum": float(ones),
            "rank": accelerator.process_index, "local": accelerator.local_process_index,
            "backend": torch.distributed.get_backend(), "threads": torch.get_num_threads(),
            "session": os.getsid(0) == os.getpid(), "stray": "TORCHELASTIC_RUN_ID" in os.environ,
            "checkpoint": str(self.checkpoint),
        }  # fmt: skip
        return Outcome(model=found)


def _launch(plan_path, data):
    with stop_signals() as request:
        try:
            launching.launch(Plan.load(plan_path), plan_path, data, [], request, worker=NAME)
        except Stopped as stopped:
            print(f"stopped: {stopped.told}", flush=True)
            return stopped.exit_code
        except TunekitError as error:
            print(f"error: {error}", flush=True)
            return error.exit_code
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "launch":
        sys.exit(_launch(Path(sys.argv[2]), Path(sys.argv[3])))
    worker._LEAVING = 1.0
    worker.Session = Session
    worker.library_logs_to = lambda path: nullcontext()  # it imports transformers, which takes seconds
    sys.exit(worker.main(sys.argv[1:]))
