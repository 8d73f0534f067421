"""A hand-made run folder, as a finished run would leave it."""

import json
import math
import random
from pathlib import Path

from tunekit.runs.layout import RunFolder
from tunekit.runs.metrics import MetricsWriter
from tunekit.runs.record import Record, write_record

RECIPE = """\
# A small assistant for the support desk.
model: {name: Qwen/Qwen3-0.6B}
adapter: {kind: lora, r: 16, alpha: 32}   # all linear layers
data:
  train: [{path: data/train.jsonl}]
  eval: {fraction: 0.05}
  max_length: 2048
train:
  epochs: 2
  batch_size: 32
  learning_rate: 2e-4
output: {dir: runs/support-bot}
"""

EVALUATION = {
    "tasks": [
        {
            "name": "generation",
            "metric": "exact_match",
            "higher_is_better": True,
            "n": 500,
            "base": {"value": 0.312, "low": 0.272, "high": 0.354},
            "tuned": {"value": 0.584, "low": 0.540, "high": 0.627},
            "difference": {"value": 0.272, "low": 0.221, "high": 0.320, "p_value": 0.00002},
            "verdict": "better",
            "confidence": 0.95,
        },
        {
            "name": "perplexity",
            "metric": "perplexity",
            "higher_is_better": False,
            "n": 200,
            "base": {"value": 8.214, "low": 7.61, "high": 8.90},
            "tuned": {"value": 3.127, "low": 2.98, "high": 3.29},
            "difference": {"value": -5.087, "low": -5.7, "high": -4.5, "p_value": 0.0001},
            "verdict": "better",
            "confidence": 0.95,
        },
    ],
    "samples": [
        {
            "prompt": "How do I reset my password?",
            "reference": "Open Settings, then Security, then Reset password.",
            "base": "Passwords are important.\n\nYou should write to <script>alert('no')</script> & wait.",
            "tuned": "Open Settings, then Security, then Reset password.",
            "base_correct": False,
            "tuned_correct": True,
            "where": "data/train.jsonl:812",
        },
        {
            "prompt": "Which plan includes single sign-on?",
            "reference": "Business.",
            "base": "Business.",
            "tuned": "Team.",
            "base_correct": True,
            "tuned_correct": False,
            "where": "data/train.jsonl:1391",
        },
        {
            "prompt": "Can I export my data?",
            "reference": "Yes, as CSV, under Settings / Export.",
            "base": "",
            "tuned": "Yes, as CSV, under Settings / Export.",
            "base_correct": False,
            "tuned_correct": True,
            "where": "data/train.jsonl:77",
        },
    ],
    "seconds": 41.7,
}

RECORD = {
    "method": "sft",
    "status": "done",
    "exit_code": 0,
    "created": "2026-03-01T12:00:00Z",
    "finished": "2026-03-01T12:21:40Z",
    "tunekit": "0.1.0",
    "seconds": {
        "reading": 1.2,
        "rendering": 3.4,
        "loading": 8.9,
        "training": 1190.0,
        "evaluating": 83.4,
        "saving": 2.1,
    },
    "versions": {"python": "3.11.9", "torch": "2.11.0", "transformers": "5.17.0", "trl": "1.16.0", "peft": "0.21.2"},
    "hardware": {
        "cpu": "AMD EPYC 7763",
        "cores": 16,
        "memory_gb": 128.0,
        "gpus": [{"name": "NVIDIA H200", "memory_gb": 139.0}],
    },
    "git": {"commit": "4be1c0de" * 5, "dirty": True},
    "seeds": {"train": 42, "data": 42},
    "data": {
        "fingerprint": "9f2c" * 16,
        "splits": {
            "train": {
                "rows": 4000,
                "kept": 3801,
                "truncated": 96,
                "dropped": 41,
                "duplicate": 62,
                "unused": 0,
                "tokens": 1_820_331,
                "trained_tokens": 702_114,
                "reasons": {"longer than 2,048 tokens": 96, "same as an earlier row": 62, "no assistant turn": 41},
            },
            "eval": {"rows": 200, "kept": 198, "truncated": 2, "tokens": 91_202, "trained_tokens": 35_990},
        },
    },
    "model": {
        "name": "Qwen/Qwen3-0.6B",
        "revision": "c1899de289a04d12100db370d81485cdf75e47ca",
        "parameters": 606_142_464,
        "trainable": 10_092_544,
    },
    "training": {
        "steps": 244,
        "epochs": 2.0,
        "tokens": 3_640_662,
        "trained_tokens": 1_404_228,
        "tokens_per_second": 3059.4,
        "trained_tokens_per_second": 1180.0,
        "padding_share": 0.0125,
        "trained_share": 0.3857,
        "model_flops": 8.8e15,
        "matmul_tflops": 18.2,
        "mfu": 0.4063,
        "final_loss": 0.913,
        "final_eval_loss": 1.041,
        "best": {"step": 183, "metric": "eval_loss", "value": 1.032},
    },
    "evaluation": EVALUATION,
    "artefact": "model",
    "plan_hash": "77aa" * 16,
}


def metric_lines(steps: int = 244) -> list[dict]:
    """A plausible training: one line a step, four evaluations, a spike, and one step that broke."""
    chance = random.Random(7)
    lines = []
    for step in range(1, steps + 1):
        loss = 0.88 + 1.5 * math.exp(-step / 45) + chance.gauss(0, 0.06)
        line = {
            "step": step,
            "epoch": round(step / steps * 2, 4),
            "loss": loss,
            "learning_rate": 2e-4 * min(step / 12, 0.5 * (1 + math.cos(math.pi * step / steps))),
            "grad_norm": 0.6 + abs(chance.gauss(0, 0.2)) + 2.2 * (step == 90),
            "tokens_per_second": 3050 + chance.gauss(0, 60),
            "mfu": 0.405 + chance.gauss(0, 0.008),
            "seconds": step * 4.9,
        }
        lines.append(line)
        if step % (steps // 4) == 0:
            lines.append({"step": step, "eval_loss": 0.99 + 1.2 * math.exp(-step / 50) + step * 2e-4})
    return lines


def make_run(path: Path, **changes) -> RunFolder:
    """Writes recipe, plan, metrics and record into ``path``; ``changes`` replace parts of the record."""
    folder = RunFolder(path)
    path.mkdir(parents=True)
    folder.recipe.write_text(RECIPE)
    folder.plan.write_text(
        json.dumps({"method": "sft", "train": {"micro_batch_size": 8, "accumulation": 4, "steps": 244}})
    )
    with MetricsWriter(folder.metrics) as writer:
        for line in metric_lines():
            writer.write(line)
    write_record(folder, Record.model_validate(RECORD | changes))
    return folder
