"""How cost grows: training and preparing data at 1x, 4x and 16x the rows, and the memory of a stream.

    python benchmarks/growth.py [--rows 64] [--prepared 500] [--streamed 2100] [--turns 3]
        [--parts train,prepare,stream]

- train: the command `tunekit sft`. The CPU of a token is that of the larger run over that of the smallest: the cost
  of starting falls out.
- prepare: tunekit's preparation (reading, rendering, labels, ledger, gate, written to disk) beside TRL's (datasets'
  JSON reader and the maps of SFTTrainer) on the same rows, in CPU seconds of the process and its children, which is
  the cost per core; libraries and tokenizer are loaded and a few rows prepared before the clock starts. The two take
  turns, and the median of their runs counts.
- stream: peak memory with `data.streaming: true` while all of a corpus passes, and of one ten times as large.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import signal
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from speed import HERE, contend, flags, last_words, machine, measured, say

TIMES = (1, 4, 16)
PREPARE = """\
method: sft
model: {{name: "{work}/model"}}
data:
  train: [{{path: "{work}/train.jsonl", format: prompt_completion}}]
  max_length: 512
  cache: false
"""
STREAM = """\
method: sft
model: {{name: "builtin:random?arch=llama&layers=1&hidden=64&heads=2"}}
data:
  train: [{{path: "{path}", format: prompt_completion}}]
  max_length: 64
  streaming: true
train: {{max_steps: {steps}, batch_size: 64, save_every: never, log_every: 1000, schedule: constant, warmup: 0}}
eval: {{baseline: false}}
"""


def made(folder: Path, rows: int) -> Path:
    """A workload of so many rows; made once."""
    work = folder / f"rows-{rows}"
    if not work.exists():
        command = [sys.executable, str(HERE / "workload.py"), str(work), "--rows", str(rows)]
        done = measured(command, folder / "making")
        if done.failed:
            sys.exit(f"the work could not be made: {done.failed}")
    return work


def train(folder: Path, wanted: argparse.Namespace) -> dict[str, Any]:
    """Rates at each size; the sizes come up and down again, so that a machine that slows down is seen."""
    precision = "bf16" if flags() & {"avx512_bf16", "amx_bf16"} else "fp32"
    runs: dict[int, list[Any]] = {times: [] for times in TIMES}
    for number, times in enumerate([*TIMES, *reversed(TIMES[:-1])]):
        done = contend(
            "tunekit", made(folder, wanted.rows * times), folder / f"run-{number}", ["--precision", precision], {}
        )
        if done.failed:
            print(f"\ntraining at {times}x {done.failed}")
            return {"failed": done.failed}
        say(f"  training, {times}x: {done.rate:,.0f} tokens/s")
        runs[times].append(done)
    rate = {times: statistics.median(run.rate for run in runs[times]) for times in TIMES}
    cpu = {times: statistics.median(run.cpu for run in runs[times]) for times in TIMES}
    tokens = {times: runs[times][0].result["tokens"] for times in TIMES}
    print("\n| training | tokens | tokens/s | seconds per token, of 1x | CPU microseconds a further token |")
    print("|---|---|---|---|---|")
    for times in TIMES:
        further = ""
        if times > 1:
            further = f"{1e6 * (cpu[times] - cpu[1]) / (tokens[times] - tokens[1]):.0f}"
        print(
            f"| {times}x | {tokens[times]:,} | {rate[times]:,.0f} | {rate[1] / rate[times]:.3f} | {further} |",
            flush=True,
        )
    return {"rate": rate, "cpu": cpu, "tokens": tokens}


def prepare(folder: Path, wanted: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of both preparations at each size."""
    runs: dict[str, dict[int, list[dict[str, float]]]] = {name: {times: [] for times in TIMES} for name in PREPARED_BY}
    for times, turn, name in itertools.product(TIMES, range(wanted.turns), runs):
        work, out = made(folder, wanted.prepared * times), folder / f"prepared-{name}-{times}-{turn}"
        command = [sys.executable, str(Path(__file__)), "--child", name, str(made(folder, 16)), str(work), str(out)]
        done = measured(command, out)
        if done.failed:
            print(f"\npreparing with {name} {done.failed}")
            return {"failed": done.failed}
        runs[name][times].append(json.loads(last_words((out / "log.txt").read_text(encoding="utf-8").split("\n"))))
        say(f"  preparing, {times}x, {name}: {runs[name][times][-1]['cpu']:.2f} s of CPU")
    spent = {
        name: {
            times: {key: statistics.median(run[key] for run in given) for key in given[0]}
            for times, given in at.items()
        }
        for name, at in runs.items()
    }
    print("\n| preparing | rows | tokens | tunekit, CPU microseconds a token | of 1x | TRL's maps | TRL / tunekit |")
    print("|---|---|---|---|---|---|---|")
    for times in TIMES:
        facts = json.loads((made(folder, wanted.prepared * times) / "facts.json").read_text(encoding="utf-8"))
        cost = {name: 1e6 * at[times]["cpu"] / facts["tokens"] for name, at in spent.items()}
        first = 1e6 * spent["tunekit"][1]["cpu"] / spent["tunekit"][1]["tokens"]
        print(
            f"| {times}x | {facts['rows']:,} | {facts['tokens']:,} | {cost['tunekit']:.1f} | "
            f"{cost['tunekit'] / first:.3f} | {cost['trl']:.1f} | {cost['trl'] / cost['tunekit']:.2f} |",
            flush=True,
        )
    return spent


def stream(folder: Path, wanted: argparse.Namespace) -> dict[str, Any]:
    """Peak memory while a whole corpus of long rows passes."""
    from workload import pairs

    texts = ["".join(pair) for pair in pairs()[0]]
    peaks: dict[int, int] = {}
    print("\n| streamed | rows | MB of corpus | peak MB |\n|---|---|---|---|")
    for times in (1, 10):
        rows, out = wanted.streamed * times, folder / f"streamed-{times}"
        out.mkdir()
        with (out / "rows.jsonl").open("w", encoding="utf-8") as file:
            for number in range(rows):
                said = " ".join(texts[(number + step) % len(texts)] for step in range(5))
                file.write(json.dumps({"prompt": f"Row {number}\n", "completion": said}, ensure_ascii=False) + "\n")
        recipe = STREAM.format(path=out / "rows.jsonl", steps=rows // 64)
        (out / "recipe.yaml").write_text(recipe, encoding="utf-8")
        command = [str(Path(sys.executable).parent / "tunekit"), "sft", str(out / "recipe.yaml")]
        done = measured([*command, "--output", str(out / "run")], out)
        size = (out / "rows.jsonl").stat().st_size / 1e6
        peaks[times] = done.peak
        print(f"| {times}x | {rows:,} | {size:.0f} | {done.failed or f'{done.peak / 1e6:,.0f}'} |", flush=True)
        (out / "rows.jsonl").unlink()
        if done.failed:
            return {"failed": done.failed}
    print(f"\nten times the corpus: {peaks[10] / peaks[1]:.3f} of the peak, {(peaks[10] - peaks[1]) / 1e6:+,.0f} MB")
    return {"peaks": peaks}


def cpu_seconds() -> float:
    """Of this process and the children that have ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


def prepared_by_tunekit(work: Path, out: Path) -> tuple[float, int]:
    """Prepares a workload; returns the CPU seconds and its tokens."""
    from tunekit.core.progress import Silent
    from tunekit.recipe.document import parse
    from tunekit.recipe.load import check
    from tunekit.train.inputs import Inputs

    recipe = check(parse(PREPARE.format(work=work), "growth.yaml"))
    inputs = Inputs(recipe, work)
    inputs.fitter  # noqa: B018 - the tokenizer is loaded, as it is before the other's clock starts
    before = cpu_seconds()
    prepared = inputs.prepare(Silent(), out)
    return cpu_seconds() - before, prepared.facts["tokens"]


def prepared_by_trl(work: Path, out: Path) -> tuple[float, int]:
    """The same by SFTTrainer's own preparation, which needs nothing of the trainer but what is given here."""
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    class Reading(SFTTrainer):
        spent = 0.0

        def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
            before = cpu_seconds()
            prepared = super()._prepare_dataset(*args, **kwargs)
            Reading.spent = cpu_seconds() - before
            return prepared

    before = cpu_seconds()
    rows = load_dataset("json", data_files=str(work / "train.jsonl"), split="train", cache_dir=str(out))
    reading = cpu_seconds() - before
    config = SFTConfig(output_dir=str(out / "run"), use_cpu=True, max_length=512, report_to="none", disable_tqdm=True)
    trainer = Reading(model=str(work / "model"), args=config, train_dataset=rows)
    return reading + Reading.spent, sum(len(ids) for ids in trainer.train_dataset["input_ids"])


PREPARED_BY = {"tunekit": prepared_by_tunekit, "trl": prepared_by_trl}


def child(name: str, small: Path, work: Path, out: Path) -> None:
    """Prepares a little first, then the work under the clock; prints the CPU seconds."""
    PREPARED_BY[name](small, out / "small")
    spent, tokens = PREPARED_BY[name](work, out / "whole")
    print(json.dumps({"cpu": spent, "tokens": tokens}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64, help="rows of training at 1x")
    parser.add_argument("--prepared", type=int, default=500, help="rows of preparation at 1x")
    parser.add_argument(
        "--streamed",
        type=int,
        default=2100,
        help="rows of the stream at 1x; more than its window and its shuffling hold",
    )
    parser.add_argument("--turns", type=int, default=3, help="runs of each preparation at each size")
    parser.add_argument("--parts", default="train,prepare,stream")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.child:
        name, *paths = wanted.child
        child(name, *map(Path, paths))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the running child as well
    parts = {"train": train, "prepare": prepare, "stream": stream}
    with tempfile.TemporaryDirectory(prefix="tunekit-growth-") as name:
        found = {part: parts[part](Path(name), wanted) for part in wanted.parts.split(",")}
    print(f"\n{machine()}.")
    if wanted.json:
        wanted.json.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
