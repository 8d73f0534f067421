"""Time from the command to the first optimizer step, beside TRL's: same model folder, same rows, interleaved.

    python benchmarks/first_step.py [--rounds 5] [--rows 64] [--lora]

Cases: `tunekit sft`, `trl sft`, and a script of a few lines that runs TRL's SFTTrainer. Each is watched from outside:
when it shows the loss of step 1, the CPU seconds of all its processes and the clock are read, and it is ended. Data
caches are empty each time. CPU seconds are what a busy machine does not change; ratios are of the best of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import tunekit

BIN = Path(sys.executable).parent
MODEL = Path(tunekit.__file__).parent / "model" / "builtin" / "tiny"
TICKS = os.sysconf("SC_CLK_TCK")
BATCH, LENGTH = 8, 128
SCRIPT = """
import sys, yaml
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer
values = yaml.safe_load(open(sys.argv[1]))
model, data = values.pop("model_name_or_path"), values.pop("dataset_name")
peft = None
if values.pop("use_peft"):
    from peft import LoraConfig
    peft = LoraConfig(r=values.pop("lora_r"), target_modules="all-linear")
    values.pop("lora_target_modules")
SFTTrainer(model, SFTConfig(**values), train_dataset=load_dataset(data, split="train"), peft_config=peft).train()
"""


def write_inputs(folder: Path, rows: int, lora: bool) -> dict[str, list[str]]:
    """The rows and a configuration for each; returns the commands."""
    (folder / "rows").mkdir()
    with (folder / "rows" / "train.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            user = {"role": "user", "content": f"What is {number} plus {number % 7}?"}
            answer = {"role": "assistant", "content": f"It is {number + number % 7}, because we count on."}
            file.write(json.dumps({"messages": [user, answer]}) + "\n")
    recipe = {
        "method": "sft",
        "model": {"name": str(MODEL)},
        "data": {"train": [{"path": str(folder / "rows" / "train.jsonl")}], "max_length": LENGTH},
        "train": {"max_steps": 3, "batch_size": BATCH, "learning_rate": 1e-3},
        "eval": {"baseline": False, "generate": False},
    } | ({"adapter": {"kind": "lora", "r": 8, "targets": "all-linear"}} if lora else {})
    (folder / "tunekit.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    # one loss a step, no tracker and no saves: the rest is as TRL defaults
    config = {
        "model_name_or_path": str(MODEL),
        "dataset_name": str(folder / "rows"),
        "output_dir": "out",
        "max_length": LENGTH,
        "max_steps": 3,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_peft": lora,
        "use_cpu": not Path("/dev/nvidia0").exists(),  # TRL refuses a CPU that it was not told of
    } | ({"lora_r": 8, "lora_target_modules": "all-linear"} if lora else {})
    (folder / "trl.yaml").write_text(json.dumps(config), encoding="utf-8")
    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    return {
        "tunekit sft": [str(BIN / "tunekit"), "sft", str(folder / "tunekit.yaml"), "--json"],
        "trl sft": [str(BIN / "trl"), "sft", "--config", str(folder / "trl.yaml")],
        "SFTTrainer, bare script": [sys.executable, str(folder / "script.py"), str(folder / "trl.yaml")],
    }


def _stats() -> Iterator[list[str]]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            yield path.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # ended in the meantime
            continue


def cpu_seconds(session: int) -> float:
    """CPU seconds of the processes of a session, and of their children that have ended."""
    return sum(sum(map(int, words[11:15])) for words in _stats() if int(words[3]) == session) / TICKS


def shows_loss(line: str) -> bool:
    """Whether a line tells the loss of a training step: tunekit's event, or the values that TRL prints."""
    if line.startswith('{"event": "metrics"'):
        return "loss" in json.loads(line)
    return "'loss':" in line


def until_first_step(command: list[str], folder: Path) -> tuple[float, float]:
    """(CPU seconds, seconds by the clock) until a command shows the loss of its first step."""
    caches = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "datasets"), "PYTHONUNBUFFERED": "1"}
    environment = os.environ | caches | {"XDG_CACHE_HOME": str(folder / "cache"), "HF_HOME": str(folder / "home")}
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if shows_loss(line):
                return cpu_seconds(process.pid), time.perf_counter() - began
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    raise SystemExit(f"no step was made by {' '.join(command)}:\n{''.join(lines[-20:])}")


def main() -> None:
    """Runs every case in turn, `rounds` times, and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--lora", action="store_true", help="an adapter instead of all weights")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        commands = write_inputs(Path(name), asked.rows, asked.lora)
        found: dict[str, list[tuple[float, float]]] = {case: [] for case in commands}
        for number in range(asked.rounds):
            for case, command in commands.items():
                folder = Path(name) / f"{number} {case}".replace(" ", "-")
                folder.mkdir()
                found[case].append(until_first_step(command, folder))
    ours = [min(values) for values in zip(*found["tunekit sft"], strict=True)]
    print("| until the first step | CPU s, best | median | clock s, best | median | tunekit is, CPU | clock |")
    print("|---|---|---|---|---|---|---|")
    for case, pairs in found.items():
        cells, ratios = [], []
        for mine, values in zip(ours, zip(*pairs, strict=True), strict=True):
            cells += [f"{min(values):.1f}", f"{statistics.median(values):.1f}"]
            ratios.append(f"{mine / min(values):.2f}x")
        print(f"| {case} | {' | '.join([*cells, *ratios])} |")


if __name__ == "__main__":
    main()
