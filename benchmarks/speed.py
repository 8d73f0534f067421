"""Training speed of tunekit beside its peers on CPU: the same rows, model, labelled tokens and threads, taking turns.

    python benchmarks/speed.py [--rounds 1] [--rows 120] [--only tunekit,bare] [--workloads full,lora] [--quick]

Each contender (a file in `contenders/`) trains in a process of its own, in turns, one round after the other. The rate
is that of the real tokens after the first three steps. What was trained is then measured by one evaluator, in fp32: a
contender is only comparable when it saw the same labelled tokens and ends within 1 % of the bare loop's loss.
Settings of `trl_best` are tried first, and the fastest is kept. llama_factory and axolotl, whose environments are
their own, run with their best settings, in the first round of the full and the LoRA work only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OWN = ("tunekit", "bare", "trl_best", "trl_default")
PEERS = ("llama_factory", "axolotl")
VERSIONS = ("tunekit", "torch", "transformers", "trl", "peft", "accelerate")
TARGETS = {"trl_default": 4.0, "trl_best": 1.5, "bare": 0.9, "llama_factory": 1.0, "axolotl": 1.0}
LIMIT = 1200
"""Seconds after which a contender has failed."""


@dataclass(frozen=True)
class Work:
    """One workload; ``share`` of the rows asked for."""

    title: str
    share: float = 1.0
    vocabulary: int = 8000
    long: bool = False
    adapter: str | None = None
    peers: bool = False
    again: bool = True

    def rows(self, wanted: int) -> int:
        return max(16, round(wanted * self.share))

    @property
    def key(self) -> str:
        """Workloads with the same key train on the same folder."""
        return f"{self.vocabulary}-{self.share}-{self.long}"


WORKS = {
    "full": Work("all weights, vocabulary 8k", peers=True),
    "lora": Work("LoRA r 16, vocabulary 8k", adapter="lora", peers=True),
    "32k": Work("all weights, vocabulary 32k", share=0.4, vocabulary=32_000, again=False),
    "128k": Work("all weights, vocabulary 128k", share=0.27, vocabulary=128_000, again=False),
    "long": Work("all weights, context 4k, one long document", share=0.2, long=True, again=False),
}
TUNED_ON = 0.27  # of the rows, when settings of trl_best are tried


@dataclass
class Done:
    """What one run of a contender gave; ``failed`` says why it did not."""

    result: dict[str, Any] = field(default_factory=dict)
    failed: str = ""
    wall: float = 0.0
    cpu: float = 0.0
    peak: int = 0

    @property
    def rate(self) -> float:
        """Tokens a second after the first steps, or of the whole training where that is not known."""
        return self.result.get("steady") or self.result["tokens"] / self.result["seconds"]


def cores() -> int:
    return len(os.sched_getaffinity(0))


def flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()


def surroundings(folder: Path) -> dict[str, str]:
    """The same environment for everyone."""
    count = str(cores())
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "WANDB", "PYTHONPATH"))}
    return mine | {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "TOKENIZERS_PARALLELISM": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONUNBUFFERED": "1",
    }


def measured(command: list[str], folder: Path) -> Done:
    """Runs a command in a process of its own.

    This process must stay small and import no heavy library: a child's peak memory begins with its parent's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started, pid = time.perf_counter(), 0
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=surroundings(folder), start_new_session=True
        )
        try:
            while True:
                pid, status, spent = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                if time.perf_counter() - started > LIMIT:
                    return Done(failed=f"failed: took more than {LIMIT} s", wall=LIMIT)
                time.sleep(0.05)
        finally:  # at the limit, or when this process is asked to end
            if not pid:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    process.returncode = os.waitstatus_to_exitcode(status)
    done = Done(wall=time.perf_counter() - started, cpu=spent.ru_utime + spent.ru_stime, peak=spent.ru_maxrss * 1024)
    if process.returncode != 0:
        text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
        done.failed = "failed: " + last_words(text)
    return done


def last_words(lines: list[str]) -> str:
    """The last line that says something; what tunekit advises after its error says nothing of the error."""
    told = [line.strip(" \u2502") for line in lines if re.search(r"\w", line)]
    return next((line for line in reversed(told) if not line.startswith(("fix:", "where:"))), "without a word")[:200]


def contend(name: str, work: Path, out: Path, settings: list[str], python: dict[str, str]) -> Done:
    """One run of a contender."""
    script = HERE / "contenders" / f"{name}.py"
    done = measured([python.get(name, sys.executable), str(script), str(work), str(out), *settings], out)
    if done.failed:
        return done
    try:
        done.result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        done.failed = f"failed: no result ({error})"
        return done
    if done.result.get("skipped"):
        done.failed = f"skipped: {done.result['skipped']}"
    return done


def processor_times() -> dict[str, float]:
    """Seconds that all cores together were busy, stolen and in all since the machine started."""
    numbers = [int(one) for one in Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()[1:9]]
    tick = os.sysconf("SC_CLK_TCK")
    idle, stolen = numbers[3] + numbers[4], numbers[7]
    return {"all": sum(numbers) / tick, "busy": (sum(numbers) - idle - stolen) / tick, "stolen": stolen / tick}


def settings_of(name: str, work: Work, precision: str, options: list[str]) -> list[str]:
    chosen = ["--adapter", work.adapter] if work.adapter else []
    if not any(option.startswith("precision=") for option in options):
        chosen += ["--precision", precision]
    for option in options:
        chosen += ["--precision", option.split("=")[1]] if option.startswith("precision=") else ["--option", option]
    return chosen


def candidates(work: Work, precision: str) -> list[list[str]]:
    """Settings of TRL that are tried."""
    tried = [["group_by_length=true"], ["packing=true"]]
    if not work.long:
        if precision == "bf16":
            tried.append(["group_by_length=true", "precision=fp32"])
        if cores() > 1:
            tried.append(["group_by_length=true", f"threads={cores() // 2}"])
    return tried


def best_settings(work: Work, folder: Path, wanted: argparse.Namespace, precision: str) -> list[str]:
    """The settings with which TRL was fastest in a short run."""
    made = prepared(Work("", share=work.share * TUNED_ON, long=work.long), folder, wanted)
    rates = {}
    for number, options in enumerate(candidates(work, precision)):
        out = folder / f"tried-{work.long}-{number}"
        done = contend("trl_best", made, out, settings_of("trl_best", work, precision, options), wanted.python)
        rates[" ".join(options)] = 0.0 if done.failed else done.rate
        say(f"  trl_best {' '.join(options)}: {done.failed or f'{done.rate:,.0f} tokens/s'}")
        shutil.rmtree(out)
    return max(rates, key=lambda options: rates[options]).split()


def prepared(work: Work, folder: Path, wanted: argparse.Namespace) -> Path:
    """The folder of a workload; made once."""
    made = folder / f"work-{work.key}"
    if not (made / "facts.json").exists():
        command = [sys.executable, str(HERE / "workload.py"), str(made), "--rows", str(work.rows(wanted.rows))]
        command += ["--vocabulary", str(work.vocabulary), *(["--long"] if work.long else [])]
        done = measured(command, folder / "making")
        if done.failed:
            sys.exit(f"the work could not be made: {done.failed}")
    return made


def compete(name: str, wanted: argparse.Namespace, folder: Path, best: list[str], precision: str) -> dict[str, Any]:
    """All rounds of one workload."""
    work = WORKS[name]
    made = prepared(work, folder, wanted)
    rounds = wanted.rounds if work.again else max(1, wanted.rounds // 2)
    runs: dict[str, list[Done]] = {}
    options = {"trl_best": best, **{one: ["best=1"] for one in PEERS}}
    before, ours = processor_times(), 0.0
    for turn in range(rounds):
        order = [one for one in wanted.only if one in OWN or (work.peers and turn == 0)]
        for one in order[turn % len(order) :] + order[: turn % len(order)]:
            out = folder / f"{name}-{one}-{turn}"
            done = contend(one, made, out, settings_of(one, work, precision, options.get(one, [])), wanted.python)
            runs.setdefault(one, []).append(done)
            ours += done.cpu
            say(f"  {name}, round {turn + 1}, {one}: {done.failed or f'{done.rate:,.0f} tokens/s'}")
            if turn:  # the first round's model is the one that is evaluated
                shutil.rmtree(out, ignore_errors=True)
    after = processor_times()
    spent = {key: after[key] - before[key] for key in after}
    losses = evaluated(
        made, {one: folder / f"{name}-{one}-0" / "model" for one in runs if not runs[one][0].failed}, folder
    )
    for one in runs:
        shutil.rmtree(folder / f"{name}-{one}-0", ignore_errors=True)
    return {
        "workload": name,
        "title": work.title,
        "facts": json.loads((made / "facts.json").read_text(encoding="utf-8")),
        "runs": runs,
        "losses": losses,
        "stolen": spent["stolen"] / spent["all"],
        "others": max(0.0, spent["busy"] - ours) / spent["all"],
    }


def evaluated(work: Path, models: dict[str, Path], folder: Path) -> dict[str, float]:
    """The loss of each model on the held-out rows, and that of the untrained one, by one evaluator in one process."""
    wanted = {"untrained": work / "model", **models}
    command = [sys.executable, str(Path(__file__)), "--evaluate", str(work), str(folder / "losses.json")]
    done = measured(command + [f"{name}={path}" for name, path in wanted.items()], folder / "evaluation")
    if done.failed:
        say(f"  evaluation {done.failed}")
        return {}
    return json.loads((folder / "losses.json").read_text(encoding="utf-8"))


def evaluate(work: Path, target: Path, models: dict[str, Path]) -> None:
    """Writes the loss per labelled token, row by row and in fp32: no padding, no mask, nothing of the contenders."""
    import torch
    from tokenizers import Tokenizer
    from torch.nn import functional as F
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer.from_file(str(work / "model" / "tokenizer.json"))
    rows = [json.loads(line) for line in (work / "eval.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = {}
    for name, path in models.items():
        base = work / "model" if (path / "adapter_config.json").exists() else path
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if base != path:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, path)
        model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for row in rows:
                asked = tokenizer.encode(row["prompt"]).ids
                ids = torch.tensor([asked + tokenizer.encode(row["completion"] + "<|end|>").ids])
                logits = model(input_ids=ids).logits[0, len(asked) - 1 : -1]
                total += float(F.cross_entropy(logits, ids[0, len(asked) :], reduction="sum"))
                count += logits.shape[0]
        losses[name] = total / count
    target.write_text(json.dumps(losses), encoding="utf-8")


def spread(values: list[float], shape: str) -> str:
    """The median, and the range where there is one."""
    middle = format(statistics.median(values), shape)
    if len(values) == 1:
        return middle
    return f"{middle} ({format(min(values), shape)} to {format(max(values), shape)})"


def ratios(own: list[Done], other: list[Done]) -> list[float]:
    """Rates of tunekit over those of a contender in the same round."""
    return [a.rate / b.rate for a, b in zip(own, other) if not a.failed and not b.failed]


def table(results: list[dict[str, Any]]) -> str:
    """The markdown table."""
    head = ["work", "contender", "tunekit is so many times as fast", "tokens/s", "peak MB", "s to the first step"]
    head += ["s, whole command", "evaluation loss", "labelled tokens"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for one in results:
        for name, runs in one["runs"].items():
            good = [run for run in runs if not run.failed]
            if not good:
                cells = [one["workload"], name, runs[0].failed.replace("|", "/"), *[""] * 6]
            else:
                cells = [one["workload"], name, *cells_of(one, name, good)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cells_of(one: dict[str, Any], name: str, good: list[Done]) -> list[str]:
    faster = ratios(one["runs"].get("tunekit", []), one["runs"][name]) if name != "tunekit" else []
    loss, bare = one["losses"].get(name), one["losses"].get("bare")
    shown = "" if loss is None else f"{loss:.4f}"
    if loss is not None and bare is not None and name != "bare":
        shown += f" ({100 * (loss / bare - 1):+.2f} %)"
    labelled, expected = good[0].result.get("labelled"), one["facts"]["labelled"]
    count = (
        "not told" if labelled is None else f"{labelled:,}" + ("" if labelled == expected else f", not {expected:,}")
    )
    return [
        spread(faster, ".2f") if faster else "",
        spread([run.rate for run in good], ",.0f") + ("" if good[0].result.get("steady") else ", with the first steps"),
        spread([max(run.peak, run.result["peak_memory"]) / 1e6 for run in good], ",.0f"),
        spread([run.result["first_step_seconds"] for run in good if run.result["first_step_seconds"]] or [0.0], ".1f"),
        spread([run.wall for run in good], ".1f"),
        shown,
        count,
    ]


def judged(results: list[dict[str, Any]]) -> list[str]:
    """What was aimed at, and what came out."""
    lines = []
    for one in results:
        facts, losses = one["facts"], one["losses"]
        lines.append(
            f"- {one['workload']}: {one['title']}; {facts['source']}, {facts['rows']} rows, "
            f"{facts['tokens']:,} tokens, {facts['labelled']:,} labelled, longest {facts['longest']}, "
            f"{facts['parameters'] / 1e6:.1f} M parameters; "
            f"loss before training {losses.get('untrained', float('nan')):.4f}; stolen {one['stolen']:.1%}, "
            f"other work {one['others']:.1%} of the processor"
        )
        for name, least in TARGETS.items():
            faster = ratios(one["runs"].get("tunekit", []), one["runs"].get(name, []))
            aimed = least if one["workload"] != "long" or name == "bare" else 1.0
            if faster:
                reached = statistics.median(faster)
                verdict = "reached" if reached >= aimed else "missed"
                lines.append(f"  - {reached:.2f}x of {name}; aimed at {aimed}: {verdict}")
        bare = losses.get("bare")
        apart = [name for name in losses if name != "untrained" and bare and abs(losses[name] / bare - 1) > 0.01]
        if apart:
            lines.append(f"  - loss more than 1 % from the bare loop's: {', '.join(apart)}")
    return lines


def machine() -> str:
    """One line on processor, memory and versions."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.split(":", 1)[1].strip() for line in text.split("\n") if line.startswith("model name")), "?")
    extras = [one for one in ("avx512f", "avx512_bf16", "amx_bf16") if one in flags()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    found = []
    for name in VERSIONS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} missing")
    libraries = ", ".join([f"Python {platform.python_version()}", *found])
    return f"{model}, {cores()} cores ({', '.join(extras) or 'no AVX-512'}), {memory:.0f} GB; {libraries}"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--only", default=",".join(OWN + PEERS), help="contenders, in order")
    parser.add_argument("--workloads", default=",".join(WORKS))
    parser.add_argument("--quick", action="store_true", help="one round, 48 rows, full and LoRA, no settings tried")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=INTERPRETER")
    parser.add_argument("--precision", choices=["bf16", "fp32"], help="default: bf16 where the processor multiplies it")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--evaluate", nargs="+", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.quick:
        wanted.rounds, wanted.rows = 1, min(wanted.rows, 48)
        if wanted.workloads == ",".join(WORKS):
            wanted.workloads = "full,lora"
    wanted.python = dict(one.split("=", 1) for one in wanted.python)
    wanted.only = [one for one in wanted.only.split(",") if (HERE / "contenders" / f"{one}.py").exists()]
    wanted.workloads = wanted.workloads.split(",")
    unknown = set(wanted.workloads) - WORKS.keys()
    if unknown or not wanted.only:
        parser.error(f"no such workload or contender: {', '.join(unknown) or 'none left'}")
    return wanted


def main() -> None:
    wanted = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the running contender as well
    if wanted.evaluate:
        work, target, *models = wanted.evaluate
        named = {name: Path(path) for name, path in (one.split("=", 1) for one in models)}
        evaluate(Path(work), Path(target), named)
        return
    precision = wanted.precision or ("bf16" if flags() & {"avx512_bf16", "amx_bf16"} else "fp32")
    started, best = time.perf_counter(), {False: ["group_by_length=true"], True: ["group_by_length=true"]}
    with tempfile.TemporaryDirectory(prefix="tunekit-speed-") as name:
        folder = Path(name)
        if "trl_best" in wanted.only and not wanted.quick:
            for long in sorted({WORKS[one].long for one in wanted.workloads}):
                tried = next(work for work in WORKS.values() if work.long == long)
                best[long] = best_settings(tried, folder, wanted, precision)
        results = [compete(one, wanted, folder, best[WORKS[one].long], precision) for one in wanted.workloads]
    print(table(results))
    print()
    print("\n".join(judged(results)))
    chosen = ", ".join(f"{'long' if long else 'other'} work {' '.join(best[long])}" for long in (False, True))
    spent = time.perf_counter() - started
    print(f"\n{machine()}.\n{precision}, {cores()} threads; trl_best: {chosen}; {spent:.0f} s in all.")
    if wanted.json:
        whole = {"machine": machine(), "precision": precision, "trl_best": {str(k): v for k, v in best.items()}}
        plain = [one | {"runs": {k: [vars(run) for run in v] for k, v in one["runs"].items()}} for one in results]
        wanted.json.write_text(json.dumps(whole | {"results": plain}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
