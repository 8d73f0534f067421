"""DPO beside TRL's DPOTrainer: the same rows in the same order, the same model, one thread, taking turns in one run.

    python benchmarks/dpo.py [--steps 10] [--rounds 2] [--precision fp32|bf16] [--length 1024] [--lr 5e-5]
        [--only trl,trl_before] [--after]

The model is a Llama of some 6 million random weights. Batches are 8 pairs, micro-batches 4. The rows are real
preferences, or those of the demo world where these are not on the machine; pairs whose answers begin too late or
differ too late for the length are left out, longer ones are cut. TRL runs without gradient checkpointing, once with the
reference in each step (a second model), once with the reference computed before. tunekit's side is the whole pipeline:
recipe, plan, session.

Each side runs in a process of its own. A step's time is CPU seconds, which a busy machine changes little; starting,
loading and the first step are left out. The reference that is computed before training is shown apart, as seconds for
the rows of one step. Ratios are those of TRL over tunekit, above 1 is faster; the median of the rounds, and their
range. "apart" is the largest difference of the losses of a step from tunekit's: a loss of other tokens, labels or
another reference would be apart by far more than arithmetic is. Tokens and labels are compared row by row as well.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speed import machine, say
from workload import END, SHARED, learned_tokenizer, save_model

SOURCE = SHARED / "preference" / "lf_dpo_en_demo.first240.json"
BATCH, MICRO = 8, 4
ALIKE = 1e-4
"""How far the losses of a step may be apart in fp32."""
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
HEADED = (
    "{% for message in messages %}{{ '<' + message['role'] + '>\\n' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>\\n' }}{% endif %}"
)
"""Nothing stands after the end of a turn: TRL trains what does, tunekit does not (see --after)."""
RECIPE = """\
method: dpo
model: {{name: "{work}/model"}}
data:
  train: [{{path: "{work}/rows.jsonl"}}]
  max_length: {length}
  shuffle: false
dpo: {{beta: 0.1}}
train:
  epochs: 1
  batch_size: {batch}
  micro_batch_size: {micro}
  learning_rate: {lr}
  schedule: constant
  warmup: 0
  weight_decay: 0.0
  max_grad_norm: 1.0
  precision: {precision}
  threads: 1
  seed: 7
  save_every: never
  log_every: 1
eval: {{baseline: false}}
"""
CONTENDERS = ("tunekit", "trl", "trl_before")


def real_rows() -> list[dict[str, Any]]:
    """The pairs as conversations, each prompt once."""
    found = {}
    for row in json.loads(SOURCE.read_text(encoding="utf-8")):
        prompt = [{"role": ROLES[one["from"]], "content": one["value"]} for one in row["conversations"]]
        answers = {side: [{"role": "assistant", "content": row[side]["value"]}] for side in ("chosen", "rejected")}
        found[json.dumps(prompt)] = {"prompt": prompt, **answers}
    return list(found.values())


def embedded_rows() -> list[dict[str, Any]]:
    from tunekit.data.world import rows

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    return [
        {"prompt": turn("user", row["prompt"])}
        | {side: turn("assistant", row[side]) for side in ("chosen", "rejected")}
        for row in rows("preferences", "train")
    ]


def make(work: Path, wanted: argparse.Namespace) -> None:
    """Writes model and rows."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # texts are measured before they are cut
    real = SOURCE.exists()
    if not real:
        say(f"the real preferences are not on this machine ({SOURCE.name}): those of the demo world are taken")
    found = real_rows() if real else embedded_rows()
    inner = learned_tokenizer([(row["prompt"][-1]["content"], row["chosen"][0]["content"]) for row in found])
    save_model(work / "model", inner.get_vocab_size(), inner, max(2048, wanted.length), seed=7)
    template = HEADED.replace("'<|end|>'", "'<|end|>' + '\\n'") if wanted.after else HEADED
    (work / "model" / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    tokenizer.chat_template = template
    kept = []
    for row in found:
        both = [
            tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=False) for side in ("chosen", "rejected")
        ]
        cut = [tokenizer(text)["input_ids"][: wanted.length] for text in both]
        asked = tokenizer(tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True))
        if len(asked["input_ids"]) < wanted.length - 1 and cut[0] != cut[1]:
            kept.append(row)
    kept = kept[: BATCH * wanted.steps]
    if len(kept) < BATCH * wanted.steps:
        raise SystemExit(f"there are rows for {len(kept) // BATCH} steps only")
    lines = [json.dumps(row, ensure_ascii=False) for row in kept]
    (work / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def clock() -> Any:
    """A callback that notes the CPU seconds at the end of each step."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.process_time())

    return Clock()


def told(ids: list[int], trained: list[bool]) -> str:
    """A short name of a sequence and of which of its tokens are trained."""
    return hashlib.sha256(json.dumps([ids, [int(one) for one in trained]]).encode()).hexdigest()[:12]


def tunekit(work: Path, wanted: argparse.Namespace) -> dict[str, Any]:
    """The pipeline, as the command goes through it."""
    from tunekit.core.progress import Silent
    from tunekit.plan.hardware import probe
    from tunekit.plan.resolve import resolve
    from tunekit.recipe.document import parse
    from tunekit.recipe.load import check
    from tunekit.train.inputs import Inputs
    from tunekit.train.session import Session

    spent, steps = {"reference": 0.0}, clock()

    class Timing(Silent):
        @contextmanager
        def step(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Any]:
            before = time.process_time()
            with Silent().step(name) as inner:
                yield inner
            if name.startswith("reference of"):
                spent["reference"] += time.process_time() - before

    class Timed(Session):
        def build(self) -> Any:
            trainer = super().build()
            trainer.add_callback(steps)
            return trainer

    text = RECIPE.format(
        work=work, length=wanted.length, batch=BATCH, micro=MICRO, lr=wanted.lr, precision=wanted.precision
    )
    plan = resolve(check(parse(text, "dpo.yaml")), work / "dpo.yaml", probe(), str(work / "run"))
    Path(plan.run_dir).mkdir()
    prepared = Inputs(plan.recipe, Path(plan.recipe_folder)).prepare(Silent(), work / "data")
    Timed(plan, prepared, Timing()).run()
    lines = (Path(plan.run_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    sequences = []
    for row in prepared.dataset("train"):
        start, shared = row["prompt_tokens"], row["prompt_tokens"]
        for size in row["branches"]:
            ids = row["input_ids"][:shared] + row["input_ids"][start : start + size]
            labels = row["labels"][:shared] + row["labels"][start : start + size]
            sequences.append(told(ids, [label >= 0 for label in labels]))
            start += size
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    return {"times": steps.times, "reference": spent["reference"], "losses": losses, "sequences": sequences}


def trl(work: Path, wanted: argparse.Namespace, *, before: bool = False) -> dict[str, Any]:
    """DPOTrainer; ``before``: the reference is computed before training."""
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(1)
    spent, steps = {"reference": 0.0}, clock()
    losses: list[float] = []

    class Counting(DPOTrainer):
        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            begun = time.process_time()
            found = super()._precompute_ref_logps(*args, **kwargs)
            spent["reference"] += time.process_time() - begun
            return found

        def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super()._compute_loss(*args, **kwargs)
            losses.append(float(loss[0] if isinstance(loss, tuple) else loss))
            return loss

    args = DPOConfig(
        output_dir=str(work / "run"), num_train_epochs=1, per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=BATCH // MICRO, learning_rate=wanted.lr, lr_scheduler_type="constant",
        weight_decay=0.0, max_grad_norm=1.0, max_length=wanted.length, beta=0.1, seed=7, save_strategy="no",
        logging_steps=1, use_cpu=True, bf16=wanted.precision == "bf16", fp16=False, report_to="none",
        disable_tqdm=True, gradient_checkpointing=False, train_sampling_strategy="sequential",
        precompute_ref_log_probs=before, optim="adamw_torch_fused",
    )  # fmt: skip
    rows = Dataset.from_list([json.loads(line) for line in (work / "rows.jsonl").read_text("utf-8").splitlines()])
    trainer = Counting(model=str(work / "model"), args=args, train_dataset=rows, callbacks=[steps])
    sequences = []
    for row in trainer.train_dataset:
        for side in ("chosen_ids", "rejected_ids"):
            ids = (row["prompt_ids"] + row[side])[: wanted.length]
            sequences.append(told(ids, [at >= len(row["prompt_ids"]) for at in range(len(ids))]))
    trainer.train()
    shares = BATCH // MICRO
    means = [statistics.fmean(losses[at : at + shares]) for at in range(0, len(losses), shares)]
    return {"times": steps.times, "reference": spent["reference"], "losses": means, "sequences": sequences}


def child(name: str, work: Path, wanted: argparse.Namespace) -> None:
    found = tunekit(work, wanted) if name == "tunekit" else trl(work, wanted, before=name == "trl_before")
    (work / "result.json").write_text(json.dumps(found), encoding="utf-8")


def contend(name: str, made: Path, folder: Path, wanted: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own, with caches of its own: nothing is found computed."""
    folder.mkdir()
    for one in ("model", "rows.jsonl"):
        (folder / one).symlink_to(made / one)
    command = [sys.executable, __file__, "--child", name, str(folder), "--lr", str(wanted.lr)]
    command += ["--precision", wanted.precision, "--length", str(wanted.length)]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "WANDB"))}
    alone = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    alone |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, env=kept | alone, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    times, steps = found["times"], len(found["losses"])
    assert len(times) == steps == wanted.steps, (len(times), steps)
    found["step"] = (times[-1] - times[0]) / (steps - 1)
    found["before"] = found["reference"] / steps
    found["whole"] = found["step"] + found["before"]
    shown = f"{found['step']:.3f} s a step, {found['before']:.3f} s for its reference before"
    say(f"  {name}: {shown}, losses {found['losses'][0]:.6f} to {found['losses'][-1]:.6f}")
    return found


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(runs: dict[str, list[dict[str, Any]]], precision: str) -> bool:
    """Prints what came out; returns whether the losses are as far apart as they may be."""
    print(
        "| contender | CPU s a step | reference before, CPU s a step | TRL / tunekit, step | with reference | apart |"
    )
    print("|---|---|---|---|---|---|")
    good = True
    for name, own in runs.items():
        cells = [name, *(f"{statistics.median(run[key] for run in own):.3f}" for key in ("step", "before"))]
        if name == "tunekit":
            cells += [""] * 3
        else:
            pairs = list(zip(own, runs["tunekit"], strict=True))
            apart = max(abs(a - b) for it, us in pairs for a, b in zip(it["losses"], us["losses"], strict=True))
            cells += [shown([it[key] / us[key] for it, us in pairs]) for key in ("step", "whole")]
            cells.append(f"{apart:.1e}")
            good = good and (precision != "fp32" or apart <= ALIKE)
        print("| " + " | ".join(cells) + " |")
    both = [own[0]["sequences"] for own in runs.values()][:2]
    other = sum(a != b for a, b in zip(*both, strict=True))
    print(f"\n{len(both[0])} sequences, {other} of them of other tokens or labels")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--after", action="store_true", help="a line break after each turn's end, as in ChatML")
    parser.add_argument("--only", default=",".join(CONTENDERS[1:]), help="which of TRL's ways")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.child:
        child(wanted.child[0], Path(wanted.child[1]), wanted)
        return
    names = ["tunekit", *wanted.only.split(",")]
    if not set(names) <= set(CONTENDERS):
        parser.error(f"--only takes some of {', '.join(CONTENDERS[1:])}")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="tunekit-dpo-") as name:
        folder = Path(name)
        make(folder, wanted)
        for turn in range(wanted.rounds):
            for one in names if turn % 2 == 0 else reversed(names):
                runs[one].append(contend(one, folder, folder / f"{one}-{turn}", wanted))
    good = table(runs, wanted.precision)
    print(f"\n{machine()}.\n{wanted.precision}, {wanted.steps} steps of {BATCH} pairs, one thread; turns end in {END}.")
    if wanted.json:
        wanted.json.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n", encoding="utf-8")
    if not good:
        raise SystemExit(f"the losses are more than {ALIKE} apart")


if __name__ == "__main__":
    main()
