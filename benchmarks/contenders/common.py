"""What the contenders share: arguments, clock, result. Standard library only, for interpreters of other environments.

    python benchmarks/contenders/NAME.py WORK OUT [--adapter lora] [--precision bf16|fp32] [--option key=value ...]

A contender trains on WORK (see `workload.py`) and writes OUT/model and OUT/result.json:
seconds (from the beginning of training to the end of the last step), first_step_seconds (from the start of the
process until the first optimizer step was done), steps, tokens (real ones), labelled (or null), peak_memory (bytes),
cpu_seconds, rates (tokens/s of each step, or null), steady (tokens/s after the first three steps, or null: the harness
then takes tokens / seconds), skipped (null or why).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WARM = 3
"""Steps that the steady rate leaves out."""
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def age() -> float:
    """Seconds since this process was started, imports of the interpreter included."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


@dataclass
class Job:
    """What is wanted: the folders, the facts of the work, and the settings."""

    work: Path
    out: Path
    adapter: str | None
    precision: str
    options: dict[str, str]
    facts: dict[str, Any]

    @property
    def train(self) -> str:
        return str(self.work / "train.jsonl")

    @property
    def model(self) -> str:
        return str(self.work / "model")

    def on(self, name: str) -> bool:
        """Whether an option is switched on."""
        return self.options.get(name, "").lower() in ("1", "true", "yes")

    def packed_batch(self) -> int:
        """Packed rows of a step that hold about as many tokens as its unpacked rows."""
        facts = self.facts
        return max(1, round(facts["batch_size"] * facts["tokens"] / facts["rows"] / facts["max_length"]))


def job() -> Job:
    """Reads the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--adapter", choices=["lora"])
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="fp32")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE")
    wanted = parser.parse_args()
    wanted.out.mkdir(parents=True, exist_ok=True)
    facts = json.loads((wanted.work / "facts.json").read_text(encoding="utf-8"))
    options = dict(option.split("=", 1) for option in wanted.option)
    return Job(wanted.work.resolve(), wanted.out.resolve(), wanted.adapter, wanted.precision, options, facts)


@dataclass
class Clock:
    """Counts tokens and times of the steps."""

    began: float = 0.0
    first: float | None = None
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    labelled: int | None = 0

    def start(self) -> None:
        """Training begins."""
        self.began = time.perf_counter()

    def step(self, tokens: int) -> None:
        """A step with so many real tokens is done."""
        self.times.append(time.perf_counter() - self.began)
        self.tokens.append(tokens)
        if self.first is None:
            self.first = age()

    def result(self) -> dict[str, Any]:
        """The part of the result that follows from steps and times."""
        spent = [end - begin for begin, end in zip([0.0, *self.times], self.times)]
        steady = None
        if len(spent) > WARM:
            steady = sum(self.tokens[WARM:]) / sum(spent[WARM:])
        return {
            "seconds": self.times[-1],
            "first_step_seconds": self.first,
            "steps": len(self.times),
            "tokens": sum(self.tokens),
            "labelled": self.labelled,
            "rates": [round(count / max(seconds, 1e-9), 1) for count, seconds in zip(self.tokens, spent)],
            "steady": steady,
        }


def used() -> dict[str, float]:
    """Peak memory in bytes (of the largest process) and CPU seconds of this process and its children."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "peak_memory": max(one.ru_maxrss for one in both) * 1024,
        "cpu_seconds": sum(one.ru_utime + one.ru_stime for one in both),
    }


def write(job: Job, values: dict[str, Any], skipped: str | None = None) -> None:
    """Writes OUT/result.json."""
    text = json.dumps({**values, **used(), "skipped": skipped}, indent=2)
    (job.out / "result.json").write_text(text + "\n", encoding="utf-8")
