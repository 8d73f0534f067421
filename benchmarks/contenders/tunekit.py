"""tunekit by its command, as a user runs it. Options: packing=true, log_every=N, or any key of the recipe with a dot.

The file's name must not shadow the package, so nothing of it is imported here: the figures come from the run folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import common

RECIPE = """\
method: sft
model: {{name: "{model}"}}
{adapter}
data:
  train: [{{path: "{train}", format: prompt_completion}}]
  max_length: {max_length}
  packing: {packing}
  cache: false
train:
  epochs: 1
  batch_size: {batch}
  learning_rate: {learning_rate}
  schedule: constant
  warmup: 0
  weight_decay: 0.0
  max_grad_norm: 1.0
  precision: {precision}
  seed: {seed}
  save_every: never
  log_every: {log_every}
eval: {{baseline: false}}
"""
ADAPTER = "adapter: {kind: lora, r: 16, alpha: 32, dropout: 0.0, targets: all-linear}"


def recipe(job: common.Job) -> str:
    facts, packing = job.facts, job.on("packing")
    return RECIPE.format(
        model=job.model,
        adapter=ADAPTER if job.adapter else "",
        train=job.train,
        max_length=facts["max_length"],
        packing=str(packing).lower(),
        batch=job.packed_batch() if packing else facts["batch_size"],
        learning_rate=facts["learning_rate"],
        precision=job.precision,
        seed=facts["seed"],
        log_every=job.options.get("log_every", "1"),
    )


def lines(path: Path) -> list[dict]:
    """The training lines of metrics.jsonl that are whole by now."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [line for line in map(json.loads, whole) if "loss" in line]


def main() -> None:
    job = common.job()
    run = job.out / "run"
    (job.out / "recipe.yaml").write_text(recipe(job), encoding="utf-8")
    command = [str(Path(sys.executable).parent / "tunekit"), "sft", str(job.out / "recipe.yaml"), "--output", str(run)]
    for key, value in job.options.items():
        if "." in key:
            command += ["--set", f"{key}={value}"]
    clock = common.Clock()
    process = subprocess.Popen(command)
    metrics = run / "metrics.jsonl"
    while process.poll() is None and clock.first is None:
        time.sleep(0.05)
        if lines(metrics):
            clock.first = common.age()
    if process.wait() != 0:
        sys.exit(process.returncode)
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    before = 0.0
    for line in lines(metrics):
        clock.times.append(line["seconds"])
        clock.tokens.append(round(line["tokens_per_second"] * (line["seconds"] - before)))
        before = line["seconds"]
    clock.labelled = record["training"]["trained_tokens"]
    (run / "model").rename(job.out / "model")
    exact = {"steps": record["training"]["steps"], "tokens": record["training"]["tokens"]}
    common.write(job, clock.result() | exact)


if __name__ == "__main__":
    main()
