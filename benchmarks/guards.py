"""What the guards and the checkpoints cost: tunekit's trainer beside TRL's own, on the same batches, in one run.

    python benchmarks/guards.py [--steps 40] [--rounds 5] [--saves 8]

Prints ratios (tunekit / plain): the time of a training step without saves, and the time of a save. The plain trainer is
TRL's SFTTrainer with the same arguments, model, rows and order, on one thread; rounds of both take turns. A step is
measured in CPU seconds of the process, which a busy machine does not change, and the median of the rounds' ratios is
shown with its range. A save is timed by the clock, as long as training waits for it, and the best of each is compared.
The plain trainer's is not flushed to the disk; tunekit's is then flushed, hashed, listed and read back beside the
training, which is timed too.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from tunekit.core.progress import Silent
from tunekit.plan.hardware import probe
from tunekit.plan.resolve import resolve
from tunekit.recipe.document import parse
from tunekit.recipe.load import check

RECIPE = """\
method: sft
model: {{name: "{model}"}}
{adapter}
data:
  train: [{{path: builtin:instructions, limit: 2000}}]
  max_length: 128
  shuffle: false
train: {{max_steps: {steps}, batch_size: 16, save_every: never, learning_rate: 1e-4, keep_checkpoints: 2, threads: 1}}
"""
MODELS = {
    "2 M, full": ("builtin:tiny", ""),
    "2 M, LoRA": ("builtin:tiny", "adapter: {kind: lora, r: 16}"),
    "14 M, full": ("builtin:random?arch=llama&layers=6&hidden=384&heads=6", ""),
}


def plan_of(model: str, adapter: str, steps: int, folder: Path):
    recipe = check(parse(RECIPE.format(model=model, adapter=adapter, steps=steps), "bench.yaml"))
    return resolve(recipe, folder / "bench.yaml", probe(), str(folder / "run"))


def ours(plan):
    """tunekit's trainer, as a run has it."""
    from tunekit.runs.metrics import MetricsWriter
    from tunekit.train.inputs import Inputs
    from tunekit.train.session import Session

    prepared = Inputs(plan.recipe, Path(plan.recipe_folder)).prepare(Silent(), Path(plan.run_dir) / "data")
    trainer = Session(plan, prepared, Silent()).build()
    trainer.samples = MetricsWriter(Path(plan.run_dir) / "samples.jsonl")
    return trainer


def plain(plan, like):
    """TRL's trainer with the same arguments, rows, order and batches."""
    from trl import SFTConfig, SFTTrainer

    from tunekit.model.load import load_model
    from tunekit.train.arguments import training_arguments

    collator = like.data_collator

    def collate(examples):
        return {k: v for k, v in collator(examples).items() if k not in ("tokens", "rows")}

    staging = Path(plan.run_dir) / "plain"
    named = training_arguments(plan, staging, evaluates=False) | {"save_total_limit": 2}
    options = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None, "completion_only_loss": False}
    return SFTTrainer(
        model=load_model(plan).model,
        args=SFTConfig(**named, **options),
        train_dataset=like.train_dataset,
        processing_class=like.processing_class,
        data_collator=collate,
    )


def timed_round(trainer) -> float:
    """The median CPU seconds of a step over one training; the first three steps are left out."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *_, **__) -> None:
            self.times.append(time.process_time())

    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    trainer.remove_callback(clock)
    steps = [b - a for a, b in zip(clock.times[3:], clock.times[4:])]
    return statistics.median(steps)


def timed_save(trainer) -> tuple[float, float]:
    """Seconds for which training waits, and until all is done."""
    trainer.state.global_step += 1
    started = time.perf_counter()
    trainer._save_checkpoint(trainer.model, None)
    waited = time.perf_counter() - started
    if hasattr(trainer, "finisher"):
        trainer.finisher.wait()
    return waited, time.perf_counter() - started


def shown(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--saves", type=int, default=8)
    wanted = parser.parse_args()
    print("pairs of milliseconds are tunekit's and the plain trainer's")
    head = f"{'model':12} {'step, ratio':26} {'save, ratio':>11} {'CPU ms a step':>16} {'ms a save':>16}"
    print(f"{head} {'until done':>12}")
    for name, (model, adapter) in MODELS.items():
        folder = Path(tempfile.mkdtemp(prefix="tunekit-bench-"))
        try:
            plan = plan_of(model, adapter, wanted.steps, folder)
            own = ours(plan)
            other = plain(plan, own)
            torch.set_num_threads(1)
            for trainer in (own, other):  # warm-up of both
                trainer.train()
            steps, saves, whole = [], [], []
            for turn in range(wanted.rounds):
                pair = {trainer: timed_round(trainer) for trainer in ([own, other] if turn % 2 else [other, own])}
                steps.append((pair[own], pair[other]))
            for turn in range(wanted.saves):
                order = [own, other] if turn % 2 else [other, own]
                pair = {trainer: timed_save(trainer) for trainer in order}
                saves.append((pair[own][0], pair[other][0]))
                whole.append(pair[own][1])
            cpu = [1000 * statistics.median(values) for values in zip(*steps)]
            best = [1000 * min(values) for values in zip(*saves)]
            line = f"{name:12} {shown([a / b for a, b in steps]):26} {best[0] / best[1]:>11.2f}"
            line += f" {cpu[0]:>9.1f}, {cpu[1]:.1f} {best[0]:>9.1f}, {best[1]:.1f}"
            print(f"{line} {1000 * min(whole):>12.1f}", flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
