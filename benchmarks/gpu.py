"""Training speed on one GPU: tunekit beside TRL's SFTTrainer and a bare torch loop, on the same packed rows, in turns.

    python benchmarks/gpu.py [--part full-0.5b|lora-0.5b|full-1b|lora-1b|profile] [--rounds 2] [--steps 30]
                             [--limit 540] [--compile] [--option train.compile=on] [--json FILE]
    python benchmarks/gpu.py --tiny --part full-0.5b       # everything but the sizes, also without a GPU

Models are built from `MODELS` with random weights. Steps are of 8 rows of 2048 tokens, documents packed and kept
apart; bf16 arithmetic; weights in float32 where they are trained, in bf16 where only LoRA is. In the first round every
way to run TRL and the bare loop takes part; later rounds are tunekit's, TRL's fastest that keeps documents apart and
the fastest bare loop's. The first five steps do not count. Everyone waits for the device at steps 1, 5, 10, ... only.
MFU is model FLOPs by tunekit's own count (`train/flops.py`), the same for everyone, against 8192^3 products in bf16.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent / "contenders"))  # last: a file there is called tunekit as well

import common
import workload

HERE = Path(__file__).resolve().parent
MODELS: dict[str, dict[str, Any]] = {
    "0.5b": {
        "vocabulary": 151_936,
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "1b": {
        "vocabulary": 128_256,
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "vocabulary": 8000,
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
"""Head sizes are 64; input and output embeddings are tied."""
PARTS = {"full-0.5b": ("0.5b", None), "lora-0.5b": ("0.5b", "lora"), "full-1b": ("1b", None), "lora-1b": ("1b", "lora")}
TRL = ("trl:bfd-sdpa", "trl:bfd-flash", "trl:bfd-flex", "trl:padded-sdpa", "trl:wrapped-sdpa")
BARE = ("bare:varlen", "bare:rows", "bare:rows-compiled")
MIXES = ("trl:wrapped-sdpa", "bare:rows", "bare:rows-compiled")
"""Documents of a row see each other here: other work, and never TRL's best."""
WARM, EVERY = 5, 5
AIMED_TRL, AIMED_MFU = 1.2, 0.5
VERSIONS = ("tunekit", "torch", "transformers", "trl", "peft", "accelerate", "flash_attn", "liger_kernel")
RECIPE = """\
method: sft
model: {{name: "{model}"}}
{adapter}
data:
  train: [{{path: "{train}", format: prompt_completion}}]
  max_length: {max_length}
  packing: true
  cache: false
train:
  max_steps: {steps}
  batch_size: {batch_size}
  micro_batch_size: {micro}
  learning_rate: {learning_rate}
  schedule: constant
  warmup: 0
  weight_decay: 0.0
  max_grad_norm: 1.0
  precision: bf16
  seed: {seed}
  save_every: never
  log_every: {every}
eval: {{baseline: false}}
"""
ADAPTER = "adapter: {kind: lora, r: 16, alpha: 32, dropout: 0.0, targets: all-linear}"


# The work ------------------------------------------------------------------------------------------------------------


def make(folder: Path, name: str, steps: int, batch: int, micro: int, length: int, seed: int = 7) -> None:
    """Writes model, tokenizer, rows and facts; rows are repeated, with a number before them, until there are enough."""
    import torch

    shape = dict(MODELS[name])
    vocabulary = shape.pop("vocabulary")
    found, source = workload.pairs()
    tokenizer = workload.learned_tokenizer(found[: workload.LEARNED])
    usable = [pair for pair, (tokens, _) in zip(found, workload.measured(tokenizer, found)) if tokens <= length - 8]
    held_out, usable = usable[: workload.HELD_OUT], usable[workload.HELD_OUT :]
    train: list[tuple[str, str]] = []
    wanted, tokens, repeats = round(1.05 * steps * batch * length), 0, 0
    while tokens < wanted:
        repeats += 1
        more = [(prompt if repeats == 1 else f"{repeats}: {prompt}", said) for prompt, said in usable]
        for pair, (size, _) in zip(more, workload.measured(tokenizer, more)):
            if tokens < wanted:
                train.append(pair)
                tokens += size
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in (("train", train), ("eval", held_out)):
        lines = [json.dumps({"prompt": asked, "completion": said}, ensure_ascii=False) for asked, said in rows]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with torch.device(device()):
        parameters = workload.save_model(
            folder / "model", vocabulary, tokenizer, length, seed, shape=shape, dtype="bfloat16"
        )
    counts = workload.measured(tokenizer, train)
    facts = {
        "source": source + (f", {repeats} times" if repeats > 1 else ""),
        "rows": len(train),
        "tokens": tokens,
        "labelled": sum(labelled for _, labelled in counts),
        "longest": max(size for size, _ in counts),
        "max_length": length,
        "batch_size": batch,
        "micro": micro,
        "steps": steps,
        "every": EVERY,
        "learning_rate": 3e-3 if name == "tiny" else 1e-4,
        "seed": seed,
        "model": MODELS[name],
        "parameters": parameters,
    }
    facts["flops_per_token"] = {kind: flops_per_token(folder, kind, counts) for kind in ("full", "lora")}
    (folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def flops_per_token(folder: Path, kind: str, counts: list[tuple[int, int]]) -> float:
    """Model FLOPs of all rows by tunekit's own count, over their tokens: documents are kept apart in every row."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tunekit.train.flops import step_flops

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "model"))
        if kind == "lora":
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(**common.LORA))
    flops, total = step_flops(model), 0
    for begin in range(0, len(counts), 256):
        part = torch.tensor(counts[begin : begin + 256])
        places = torch.arange(int(part[:, 0].max())).expand(len(part), -1)
        first = (part[:, 0] - part[:, 1])[:, None]
        labels = torch.where((places >= first) & (places < part[:, :1]), 0, -100)
        total += flops.of({"tokens": part[:, 0], "labels": labels, "position_ids": places})
    return total / sum(size for size, _ in counts)


# What runs in processes of its own -----------------------------------------------------------------------------------


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Until the device has done all it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory() -> int | None:
    """Peak bytes of the device's memory that held tensors."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


@dataclass
class Marks:
    """Times at which everything up to a step was done, and the losses in between."""

    began: float = 0.0
    first: float | None = None
    points: list[tuple[int, float, int]] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)

    def start(self) -> None:
        self.began = time.perf_counter()

    def mark(self, step: int, tokens: int, loss: float, seconds: float | None = None) -> None:
        """``tokens`` so far; ``loss`` is the mean since the last mark. Who calls this has waited for the device."""
        self.points.append((step, time.perf_counter() - self.began if seconds is None else seconds, tokens))
        self.losses[step] = loss
        if self.first is None:
            self.first = common.age()

    def result(self) -> dict[str, Any]:
        """Rate: of the steps after the first five."""
        (step, since, before), (last, until, tokens) = next(p for p in self.points if p[0] >= WARM), self.points[-1]
        return {
            "steps": last,
            "tokens": tokens,
            "seconds": until,
            "first_step_seconds": self.first,
            "steady": (tokens - before) / (until - since) if last > step else None,
            "losses": self.losses,
            "marks": self.points,
        }


def look(out: Path, size: int) -> None:
    """Writes what this machine has, and how fast it multiplies: the median of 30 products of values as if at random."""
    import torch

    seen: dict[str, Any] = {"cuda": torch.cuda.is_available(), "torch": torch.__version__}
    if seen["cuda"]:
        facts = torch.cuda.get_device_properties(0)
        seen |= {"name": facts.name, "memory": facts.total_memory, "cuda_version": torch.version.cuda}
    else:
        seen["name"] = "no GPU"
    if seen["cuda"] or size < 1024:
        matrix = torch.randn(size, size, device=device()).bfloat16()
        spent = []
        for _ in range(35):
            wait()
            begun = time.perf_counter()
            matrix @ matrix
            wait()
            spent.append(time.perf_counter() - begun)
        seen["flops"] = 2 * size**3 / statistics.median(spent[5:])
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing" if importlib.util.find_spec(name) is None else "from its folder"
    out.write_text(json.dumps(seen | {"versions": found, "python": platform.python_version()}), encoding="utf-8")


def loaded(job: common.Job, **options: Any) -> tuple[Any, Any]:
    """The model, with its adapter if there is one, and the model within."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if job.adapter and device() == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype, **options).to(device())
    if not job.adapter:
        return model, model
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(job.facts["seed"])
    model = get_peft_model(model, LoraConfig(**common.LORA))
    return model, model.base_model.model


def held_out_loss(model: Any, job: common.Job) -> float:
    """Loss per labelled token of the held-out rows: one after another, without padding, in bf16 for everyone."""
    import bare
    import torch
    from torch.nn import functional as F

    causal = model.base_model.model if hasattr(model, "peft_config") else model
    causal.set_attn_implementation("sdpa")
    rows = bare.examples(common.Job(**{**vars(job), "facts": job.facts, "work": job.work / "held-out"}))
    total, count = 0.0, 0
    model.eval()
    with torch.no_grad(), torch.autocast(device(), torch.bfloat16):
        for ids, begin in rows:
            inputs = torch.tensor([ids], device=device())
            logits = model(input_ids=inputs, use_cache=False).logits[0, begin - 1 : -1].float()
            total += float(F.cross_entropy(logits, inputs[0, begin:], reduction="sum"))
            count += len(ids) - begin
    return total / count


def tunekit(job: common.Job) -> None:
    """By its command, as a user runs it; what it saved is measured afterwards."""
    import torch
    from transformers import AutoModelForCausalLM

    run = job.out / "run"
    (job.out / "recipe.yaml").write_text(recipe(job), encoding="utf-8")
    command = [sys.executable, "-m", "tunekit", "sft", str(job.out / "recipe.yaml"), "--output", str(run)]
    for key, value in job.options.items():
        if "." in key:
            command += ["--set", f"{key}={value}"]
    marks, started = Marks(), time.perf_counter()
    process = subprocess.Popen(command)
    while process.poll() is None and marks.first is None:
        time.sleep(0.05)
        if logged(run):
            marks.first = time.perf_counter() - started
    if process.wait() != 0:
        sys.exit(process.returncode)
    tokens, before, peak = 0.0, 0.0, 0.0
    for line in logged(run):
        tokens += line["tokens_per_second"] * (line["seconds"] - before)
        before, peak = line["seconds"], max(peak, line["memory_gb"])
        marks.mark(line["step"], round(tokens), line["loss"], line["seconds"])
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    training = record["training"]
    if job.adapter:
        from peft import PeftModel

        dtype = torch.bfloat16 if device() == "cuda" else torch.float32
        base = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype)
        model = PeftModel.from_pretrained(base, run / "model")
    else:
        model = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    values = marks.result() | {
        "labelled": training["trained_tokens"],
        "gpu_memory": round(peak * 1e9) if device() == "cuda" else None,
        "held_out": held_out_loss(model.to(device()), job),
        "own_mfu": training.get("mfu"),
        "note": f"padded: {training['padded_because']}" if training.get("padded_because") else "",
    }
    common.write(job, values)


def recipe(job: common.Job) -> str:
    paths = {"model": job.model, "train": job.train}
    return RECIPE.format(**(job.facts | paths), adapter=ADAPTER if job.adapter else "")


def logged(run: Path) -> list[dict[str, Any]]:
    """The whole training lines of metrics.jsonl by now."""
    path = run / "metrics.jsonl"
    whole = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [line for line in map(json.loads, whole) if "loss" in line]


def trl(job: common.Job, variant: str) -> None:
    """TRL's SFTTrainer: ``variant`` is how rows are made, and the attention."""
    rows, attention = variant.split("-")
    if attention == "flash" and importlib.util.find_spec("flash_attn") is None:
        common.write(job, {}, "flash_attn is not installed")
        return
    try:
        from datasets import load_dataset
        from transformers import TrainerCallback
        from trl import SFTConfig, SFTTrainer
    except ImportError as error:
        common.write(job, {}, f"cannot be imported: {error}")
        return
    facts, on_gpu, marks = job.facts, device() == "cuda", Marks()
    seen: dict[str, Any] = {"tokens": 0, "labelled": 0}

    class Steps(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            wait()
            marks.start()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                wait()
                marks.mark(state.global_step, int(seen["tokens"]), float(logs["loss"]))

    class Counting(SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            mask = inputs.get("attention_mask")  # sums stay on the device: nobody waits for them
            seen["tokens"] = seen["tokens"] + (inputs["input_ids"].numel() if mask is None else mask.sum())
            seen["labelled"] = seen["labelled"] + (inputs["labels"][:, 1:] >= 0).sum()
            return super().training_step(model, inputs, *args, **kwargs)

    def settings(checkpointing: bool) -> dict[str, Any]:
        micro, passes = facts["micro"], facts["batch_size"] // facts["micro"]
        if rows == "padded":  # so many rows that they hold as many tokens
            micro = max(1, round(micro * facts["max_length"] / (facts["tokens"] / facts["rows"])))
        names = {"flash": "flash_attention_2", "flex": "flex_attention", "sdpa": "sdpa"}
        dtype = "bfloat16" if job.adapter and on_gpu else "float32"
        chosen: dict[str, Any] = {"train_sampling_strategy": "group_by_length"}
        if rows != "padded":
            chosen = {"packing": True, "packing_strategy": rows}
        return chosen | {
            "output_dir": str(job.out / "checkpoints"),
            "model_init_kwargs": {"dtype": dtype, "attn_implementation": names[attention]},
            "max_steps": facts["steps"],
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": passes,
            "gradient_checkpointing": checkpointing,
            "use_liger_kernel": on_gpu and importlib.util.find_spec("liger_kernel") is not None,
            "learning_rate": facts["learning_rate"],
            "lr_scheduler_type": "constant",
            "optim": "adamw_torch_fused",
            "max_length": facts["max_length"],
            "bf16": True,
            "use_cpu": not on_gpu,
            "seed": facts["seed"],
            "dataloader_num_workers": 2 if on_gpu else 0,
            "logging_steps": facts["every"],
            "logging_first_step": True,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }

    peft = None
    if job.adapter:
        from peft import LoraConfig

        peft = LoraConfig(**common.LORA)
    data = load_dataset("json", data_files=job.train, split="train", cache_dir=str(job.out / "cache"))
    options = settings(job.on("checkpointing"))
    trainer = Counting(model=job.model, args=SFTConfig(**options), train_dataset=data, peft_config=peft)
    trainer.add_callback(Steps())
    trainer.train()
    values = marks.result() | {"labelled": int(seen["labelled"]), "gpu_memory": memory()}
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    notes = ["gradient checkpointing: without it memory did not suffice"] if job.on("checkpointing") else []
    notes += ["Liger kernels"] if options["use_liger_kernel"] else []
    common.write(job, values | {"held_out": held_out_loss(model, job), "note": ", ".join(notes)})


def bare_loop(job: common.Job, variant: str) -> None:
    """A plain loop that does nothing a training does not need: batches lie ready in pinned memory; fused AdamW.

    ``varlen``: flat rows, torch's variable-length attention. ``rows``: full rows, in which documents see each other.
    """
    import bare
    import torch
    from torch.nn import functional as F

    flat, on_gpu = variant == "varlen", device() == "cuda"
    facts, lies = job.facts, Documents()
    model, causal = loaded(job, attn_implementation=lies.name() if flat else "sdpa")
    if variant == "rows-compiled":
        causal.model.compile()
    model.train()
    weights = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=facts["learning_rate"], weight_decay=0.0, fused=True)
    work = [
        [laid_out(part, facts["max_length"], flat) for part in step] for step in steps_of(bare.examples(job), facts)
    ]
    marks, tokens, labelled, total, since = Marks(), 0, 0, torch.zeros((), device=device()), 0
    wait()
    marks.start()
    for number, step in enumerate(work, 1):
        count = sum(len(part["targets"]) for part in step)
        for part in step:
            lies.lengths = part["lengths"]
            inputs = {name: part[name].to(device(), non_blocking=on_gpu) for name in ("input_ids", "position_ids")}
            keep, targets = (part[name].to(device(), non_blocking=on_gpu) for name in ("keep", "targets"))
            lies.starts = part["starts"].to(device(), non_blocking=on_gpu)
            with torch.autocast(device(), torch.bfloat16):
                hidden = causal.model(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)
                logits = causal.lm_head(hidden[keep]).float()
                loss = F.cross_entropy(logits, targets, reduction="sum") / count
            loss.backward()
            total += loss.detach()
            tokens += part["tokens"]
            del hidden, logits, loss
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        labelled, since = labelled + count, since + 1
        if number == 1 or number % facts["every"] == 0:
            wait()
            marks.mark(number, tokens, float(total) / since)
            total, since = torch.zeros_like(total), 0
    values = marks.result() | {"labelled": labelled, "gpu_memory": memory()}
    del work, optimizer
    if variant == "rows-compiled":
        torch.compiler.set_stance("force_eager")
    common.write(job, values | {"held_out": held_out_loss(model, job)})


Document = tuple[list[int], int]


def steps_of(documents: list[Document], facts: dict[str, Any]) -> list[list[list[list[Document]]]]:
    """Packed rows, shuffled: for each step the micro-batches of rows of documents."""
    from tunekit.data.pack import best_fit

    rows = best_fit([len(ids) for ids, _ in documents], facts["max_length"])
    random.Random(facts["seed"]).shuffle(rows)
    micro, batch, passes = facts["micro"], facts["batch_size"], facts["steps"]
    assert len(rows) >= passes * batch, f"{len(rows)} rows for {passes} steps of {batch}"
    packed = [[documents[number] for number in row] for row in rows[: passes * batch]]
    starts = range(0, passes * batch, batch)
    return [[packed[at : at + micro] for at in range(start, start + batch, micro)] for start in starts]


def laid_out(rows: list[list[Document]], width: int, flat: bool) -> dict[str, Any]:
    """One micro-batch, in pinned memory where there is a device: (1, N), or (B, T) without regard to documents."""
    import torch

    inputs: list[int] = []
    places: list[int] = []
    following: list[int] = []
    lengths: list[int] = []
    for row in rows:
        for ids, begin in row:
            inputs += ids
            places += range(len(ids))
            following += [-100] * (begin - 1) + ids[begin:] + [-100]
            lengths.append(len(ids))
        if not flat:
            missing = -len(inputs) % width
            inputs += [0] * missing
            following += [-100] * missing
    targets = torch.tensor(following)
    shape = (1, -1) if flat else (len(rows), width)
    positions = torch.tensor(places)[None] if flat else torch.arange(width)[None].expand(len(rows), -1).contiguous()
    made = {
        "input_ids": torch.tensor(inputs).reshape(shape),
        "position_ids": positions,
        "keep": (targets >= 0).nonzero().flatten(),
        "targets": targets[targets >= 0],
        "starts": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
    }
    if torch.cuda.is_available():
        made = {name: value.pin_memory() for name, value in made.items()}
    return made | {"lengths": lengths, "tokens": sum(lengths)}


class Documents:
    """Where the documents of the micro-batch lie that is under way, and attention within them."""

    lengths: list[int]
    starts: Any

    def name(self) -> str:
        """Registers this attention; the model makes no mask for it."""
        from transformers import AttentionInterface

        AttentionInterface.register("bench_varlen", self.attend)
        return "bench_varlen"

    def attend(
        self, module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None, **_: Any
    ) -> tuple[Any, None]:
        import torch
        from torch.nn import functional as F

        # with float32 weights rotary embeddings make float32 of what autocast had made bf16
        query, key, value = (each.to(torch.bfloat16) for each in (query, key, value))
        groups = query.shape[1] // key.shape[1]
        if not query.is_cuda:
            parts = (each.split(self.lengths, dim=2) for each in (query, key, value))
            found = [F.scaled_dot_product_attention(*one, is_causal=True, enable_gqa=True) for one in zip(*parts)]
            return torch.cat(found, dim=2).transpose(1, 2), None
        from torch.nn.attention.varlen import varlen_attn

        options: dict[str, Any] = {"enable_gqa": groups > 1}
        if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12):
            options = {}
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
        longest = max(self.lengths)
        attend: Any = varlen_attn
        found = attend(
            q, k, v, self.starts, self.starts, longest, longest, scale=scaling, window_size=(-1, 0), **options
        )
        return found[None], None


KINDS = {
    "copies and casts": r"copy|memcpy|memset|cast|CatArray",
    "optimizer and clipping": r"adam|multi_tensor|foreach|lpnorm",
    "attention": r"flash|fmha|attn|attention|sdpa",
    "matrix products": r"gemm|cutlass|nvjet|xmma|cublas|splitk|\bmm\b|matmul",
    "softmax and loss": r"softmax|nll|cross_entropy|scatter|gather",
    "norms and sums": r"reduce|norm|sum|mean",
    "element by element": r"elementwise|vectorized|pointwise|fill|index|triton",
}
"""In this order: the first that matches a kernel's name."""
NO_WORK = r"^(Context|Stream|Event) (Sync|Wait)|^enumerate\(|^ProfilerStep|^Optimizer\."
"""Names of what a profiler lists beside kernels."""


def profile(job: common.Job) -> None:
    """Three steps of tunekit's trainer, in this process, under torch's profiler; the five steps before are timed."""
    import torch
    from torch.profiler import ProfilerActivity
    from transformers import TrainerCallback

    from tunekit.core.progress import Silent
    from tunekit.plan.hardware import probe
    from tunekit.plan.resolve import resolve
    from tunekit.recipe.document import override, parse
    from tunekit.recipe.load import check
    from tunekit.train.inputs import Inputs
    from tunekit.train.session import Session

    on_gpu = device() == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU  # alone: it disturbs the least
    recorder = torch.profiler.profile(activities=[activity], acc_events=True)
    first, steps, times = 2 * WARM, 3, {}

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step in (WARM, first, first + steps):
                wait()
                times[state.global_step, "end"] = time.perf_counter()
            if state.global_step == first:
                recorder.start()
                wait()
                times[state.global_step, "begin"] = time.perf_counter()
            if state.global_step == first + steps:
                recorder.stop()

    path = job.out / "recipe.yaml"
    path.write_text(recipe(job), encoding="utf-8")
    given = [f"output.dir={json.dumps(str(job.out / 'run'))}", f"train.max_steps={first + steps + 1}"]
    given += [f"{key}={value}" for key, value in job.options.items() if "." in key]
    plan = resolve(check(override(parse(recipe(job), str(path)), given)), path, probe())
    Path(plan.run_dir).mkdir(parents=True)
    torch.set_num_threads(plan.threads)
    prepared = Inputs(plan.recipe, Path(plan.recipe_folder)).prepare(Silent(), Path(plan.run_dir) / "data")
    trainer = Session(plan, prepared, Silent()).build()
    trainer.add_callback(Watch())
    trainer.train_from(None)
    unwatched = (times[first, "end"] - times[WARM, "end"]) / (first - WARM)
    watched = (times[first + steps, "end"] - times[first, "begin"]) / steps
    values = kernels(recorder, on_gpu, watched, steps)
    # against the step without the profiler, which slows the host down and not the kernels
    busy = values.pop("busy_seconds")
    values["idle_share"] = None if busy is None else max(0.0, 1 - busy / unwatched)
    values |= {"seconds_per_step": unwatched, "seconds_per_step_watched": watched, "busy_seconds_per_step": busy}
    values |= {"padded_because": trainer.padded_because, "attention": attention_of(trainer)}
    common.write(job, values | {"gpu_memory": memory(), "micro": plan.micro_batch_size, "passes": plan.accumulation})


def attention_of(trainer: Any) -> str:
    from tunekit.evaluate.mode import plain_model

    return str(plain_model(trainer.model).config._attn_implementation)


def kernels(recorder: Any, on_gpu: bool, watched: float, steps: int) -> dict[str, Any]:
    """Time by kernel and by kind, the share in which the device had nothing to do, and how often the host waited."""
    from torch.autograd import DeviceType

    spent: dict[str, list[float]] = {}
    spans, waits = [], 0
    for event in recorder.events():
        if getattr(event, "is_user_annotation", False) or re.search(NO_WORK, event.name):
            continue
        if (event.device_type == DeviceType.CUDA) == on_gpu:
            seconds = (event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total) / 1e6
            one = spent.setdefault(event.name, [0.0, 0])
            one[0], one[1] = one[0] + seconds, one[1] + 1
            spans.append((event.time_range.start, event.time_range.end))
        elif "Synchronize" in event.name:
            waits += 1
    busy, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):  # kernels may overlap
        busy += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    total = sum(seconds for seconds, _ in spent.values())
    kinds: dict[str, float] = {}
    for name, (seconds, _) in spent.items():
        kind = next((kind for kind, words in KINDS.items() if re.search(words, name, re.IGNORECASE)), "other")
        kinds[kind] = kinds.get(kind, 0.0) + seconds
    top = sorted(spent.items(), key=lambda one: -one[1][0])[:15]
    return {
        "top": [
            {"kernel": n, "ms_per_step": 1e3 * s / steps, "share": s / total, "calls": c / steps} for n, (s, c) in top
        ],
        "kinds": {kind: seconds / total for kind, seconds in sorted(kinds.items(), key=lambda one: -one[1])},
        "launches": sum(count for _, count in spent.values()) / steps,
        "busy_seconds": busy / 1e6 / steps if on_gpu else None,
        "idle_share_watched": max(0.0, 1 - busy / 1e6 / steps / watched) if on_gpu else None,
        "waits_of_the_host": waits / steps,
    }


def work(name: str) -> None:
    """Runs a contender in this process."""
    job = common.job()
    name, _, variant = name.partition(":")
    held_out = job.work / "held-out"
    if not held_out.exists():  # the same rows, as a folder that `bare.examples` reads
        held_out.mkdir()
        (held_out / "train.jsonl").symlink_to("../eval.jsonl")
        (held_out / "model").symlink_to("../model")
    runs = {"tunekit": tunekit, "profile": profile}
    if name in runs:
        runs[name](job)
    else:
        {"trl": trl, "bare": bare_loop}[name](job, variant)


# What starts them ----------------------------------------------------------------------------------------------------


@dataclass
class Done:
    """What a run gave; ``failed`` says why it did not."""

    result: dict[str, Any] = field(default_factory=dict)
    failed: str = ""
    wall: float = 0.0

    @property
    def rate(self) -> float:
        return self.result.get("steady") or 0.0


def surroundings(folder: Path, cuda: bool) -> dict[str, str]:
    """The same environment for everyone, with one GPU."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "WANDB"))}
    paths = [str(HERE.parent / "src"), *filter(None, [mine.get("PYTHONPATH")])]
    one = mine.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return mine | {
        "PYTHONPATH": os.pathsep.join(paths),
        "CUDA_VISIBLE_DEVICES": one if cuda else "",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "TOKENIZERS_PARALLELISM": "true",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
    }


def ran(arguments: list[str], folder: Path, cuda: bool, limit: float) -> Done:
    """Runs this file with other arguments in a process of its own; at the limit it is ended, with its children."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=surroundings(folder, cuda),
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout=max(1.0, limit))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    done = Done(wall=time.perf_counter() - started)
    if code is None:
        done.failed = f"failed: took more than {limit:.0f} s"
    elif code:
        told = [line.strip() for line in (folder / "log.txt").read_text("utf-8", "replace").split("\n")]
        told = [line for line in told if re.search(r"\w", line) and not line.startswith(("fix:", "where:"))]
        done.failed = "failed: " + (told[-1] if told else "without a word")[:200]
        if any("out of memory" in line.lower() for line in told):
            done.failed = "failed: out of memory"
    elif (folder / "result.json").exists():
        done.result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        if done.result.get("skipped"):
            done.failed = f"skipped: {done.result['skipped']}"
    return done


@dataclass
class Bench:
    """The whole session: its folder, its settings, what the machine has, and until when there is time."""

    folder: Path
    wanted: argparse.Namespace
    machine: dict[str, Any]
    until: float
    longest: float = 0.0

    @property
    def left(self) -> float:
        return self.until - time.monotonic()

    def prepared(self, model: str) -> Path:
        """The folder of a model and its rows; made once."""
        made, wanted = self.folder / f"work-{model}", self.wanted
        if not (made / "facts.json").exists():
            sizes = [str(one) for one in (wanted.steps, wanted.batch, wanted.micro, wanted.length)]
            name = "tiny" if wanted.tiny else model
            done = ran(["--make", str(made), name, *sizes], self.folder / "making", self.machine["cuda"], self.left)
            if done.failed:
                sys.exit(f"the work could not be made: {done.failed}")
            say(f"  made the work of {name} in {done.wall:.0f} s")
        return made

    def run(self, name: str, made: Path, adapter: str | None, out: Path) -> Done:
        """One run, if there is time for it; TRL once more with gradient checkpointing when memory does not suffice."""
        if self.left < 1.2 * self.longest:
            return Done(failed="skipped: no time left")
        given = ["--worker", name, str(made), str(out), *(["--adapter", adapter] if adapter else [])]
        if name in ("tunekit", "profile"):
            given += [part for option in self.wanted.option for part in ("--option", option)]
        done = ran(given, out, self.machine["cuda"], min(self.left, self.wanted.run_limit))
        if done.failed == "failed: out of memory" and name.startswith("trl"):
            say(f"  {name}: out of memory; once more with gradient checkpointing")
            again = [*given, "--option", "checkpointing=1"]
            removed(out)
            done = ran(again, out, self.machine["cuda"], min(self.left, self.wanted.run_limit))
        if not done.failed:
            self.longest = max(self.longest, done.wall)
        return done

    def compete(self, part: str) -> dict[str, Any]:
        """All rounds of a part."""
        model, adapter = PARTS[part]
        made = self.prepared(model)
        everyone = [name for name in ("tunekit", *TRL, *BARE) if name.partition(":")[0] in self.wanted.only]
        everyone = [name for name in everyone if self.wanted.compile or not name.endswith("-compiled")]
        if not self.machine["cuda"]:  # a way that needs a GPU
            everyone = [name for name in everyone if name not in ("trl:bfd-flex", "trl:padded-sdpa")]
        runs: dict[str, list[Done]] = {}
        for turn in range(self.wanted.rounds):
            order = everyone if turn == 0 else [*everyone[:1], *self.best(runs)]
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                out = self.folder / f"{part}-{name.replace(':', '-')}-{turn}"
                done = self.run(name, made, adapter, out)
                runs.setdefault(name, []).append(done)
                say(f"  {part}, round {turn + 1}, {name}: {done.failed or f'{done.rate:,.0f} tokens/s'}")
                for large in ("run", "cache", "checkpoints"):
                    removed(out / large)
        facts = json.loads((made / "facts.json").read_text(encoding="utf-8"))
        return {"part": part, "adapter": adapter, "facts": facts, "runs": runs, "best": self.best(runs)}

    def best(self, runs: dict[str, list[Done]]) -> list[str]:
        """The fastest way of TRL that keeps documents apart, and the fastest bare loop."""
        found = []
        for kind, barred in (("trl", MIXES), ("bare", ())):
            rates = {
                name: max(done.rate for done in several)
                for name, several in runs.items()
                if name.startswith(f"{kind}:") and name not in barred and any(done.rate for done in several)
            }
            if rates:
                found.append(max(rates, key=lambda name: rates[name]))
        return found

    def profiled(self) -> dict[str, Any]:
        """The profile of `--profile-of`."""
        model, adapter = PARTS[self.wanted.profile_of]
        done = self.run("profile", self.prepared(model), adapter, self.folder / "profile")
        return {"part": "profile", "of": self.wanted.profile_of, **vars(done)}


def removed(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def spread(values: list[float], shape: str) -> str:
    """The median, and the range where there is one."""
    values = [one for one in values if one is not None]
    if not values:
        return ""
    middle = format(statistics.median(values), shape)
    return middle if len(values) == 1 else f"{middle} ({format(min(values), shape)} to {format(max(values), shape)})"


def ratios(one: dict[str, Any], name: str) -> list[float]:
    """Rates of tunekit over those of a contender in the same round."""
    pairs = zip(one["runs"].get("tunekit", []), one["runs"].get(name, []))
    return [a.rate / b.rate for a, b in pairs if a.rate and b.rate]


def mfu(one: dict[str, Any], done: Done, ceiling: float | None) -> float | None:
    """Share of the measured matrix rate."""
    return done.rate * one["facts"]["flops_per_token"][one["adapter"] or "full"] / ceiling if ceiling else None


def table(results: list[dict[str, Any]], ceiling: float | None) -> str:
    """The markdown table."""
    head = ["part", "contender", "tunekit is so many times as fast", "tokens/s", "MFU", "peak GB"]
    head += ["s to the first step", "loss, last steps", "held-out loss", "remarks"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for one in results:
        for name, several in one["runs"].items():
            good = [done for done in several if not done.failed]
            if good:
                cells = cells_of(one, name, good, ceiling)
            else:
                cells = [several[0].failed.replace("|", "/"), *[""] * 7]
            lines.append("| " + " | ".join([one["part"], name, *cells]) + " |")
    return "\n".join(lines)


def cells_of(one: dict[str, Any], name: str, good: list[Done], ceiling: float | None) -> list[str]:
    results = [done.result for done in good]
    last, held_out = list(results[0]["losses"].values())[-1], results[0]["held_out"]
    bare = next((d.result["held_out"] for d in one["runs"].get("bare:varlen", []) if not d.failed), None)
    shown = f"{held_out:.4f}"
    if bare and name != "bare:varlen":
        shown += f" ({100 * (held_out / bare - 1):+.2f} %)"
    remarks = [results[0].get("note") or ""]
    remarks += ["documents of a row see each other"] if name in MIXES else []
    remarks += ["fastest of its kind"] if name in one["best"] and name != "tunekit" else []
    peaks = [result["gpu_memory"] / 1e9 for result in results if result["gpu_memory"]]
    return [
        "" if name == "tunekit" else spread(ratios(one, name), ".2f"),
        spread([done.rate for done in good], ",.0f"),
        spread([mfu(one, done, ceiling) for done in good], ".1%"),
        spread(peaks, ".1f"),
        spread([result["first_step_seconds"] for result in results], ".1f"),
        f"{last:.4f}",
        shown,
        "; ".join(filter(None, remarks)),
    ]


def judged(results: list[dict[str, Any]], ceiling: float | None) -> Iterator[str]:
    """What was aimed at, and what came out."""
    for one in results:
        facts = one["facts"]
        model = ", ".join(f"{key} {value}" for key, value in facts["model"].items())
        yield (
            f"- {one['part']}: {facts['parameters'] / 1e6:.0f} M parameters ({model}; tied); {facts['source']}, "
            f"{facts['rows']:,} documents of {facts['tokens'] / facts['rows']:.0f} tokens on average, at most "
            f"{facts['longest']}, {facts['labelled'] / facts['tokens']:.0%} labelled; {facts['steps']} steps of "
            f"{facts['batch_size']} x {facts['max_length']} in passes of {facts['micro']}"
        )
        for name in one["best"]:
            faster = ratios(one, name)
            if not faster:
                continue
            verdict = ""
            if name.startswith("trl"):
                verdict = f"; aimed at {AIMED_TRL}: {aimed(statistics.median(faster), AIMED_TRL)}"
            yield f"  - {statistics.median(faster):.2f}x of {name}{verdict}"
        shares = [mfu(one, done, ceiling) for done in one["runs"].get("tunekit", []) if not done.failed]
        known = [share for share in shares if share is not None]
        if known and one["part"] == "full-1b":
            share = statistics.median(known)
            yield f"  - {share:.1%} of the matrix rate; aimed at {AIMED_MFU:.0%}: {aimed(share, AIMED_MFU)}"


def aimed(reached: float, least: float) -> str:
    return "reached" if reached >= least else "missed"


def told(found: dict[str, Any]) -> Iterator[str]:
    """The profile in words."""
    if found["failed"]:
        yield f"profile of {found['of']}: {found['failed']}"
        return
    seen = found["result"]
    yield f"profile of {found['of']}, three steps of tunekit (attention {seen['attention']}, {seen['passes']} passes):"
    yield ""
    if seen["idle_share"] is not None:
        yield (
            f"- a step takes {1e3 * seen['seconds_per_step']:.1f} ms, {1e3 * seen['busy_seconds_per_step']:.1f} ms of "
            f"them in kernels: the GPU is idle for {seen['idle_share']:.1%} "
            f"({seen['idle_share_watched']:.1%} under the profiler, {1e3 * seen['seconds_per_step_watched']:.1f} ms)"
        )
    else:
        yield f"- a step takes {1e3 * seen['seconds_per_step']:.1f} ms; no GPU: operators, not kernels"
    yield f"- {seen['launches']:,.0f} kernels and copies a step; the host waits {seen['waits_of_the_host']:.0f} times"
    yield "- by kind: " + ", ".join(f"{kind} {share:.1%}" for kind, share in seen["kinds"].items())
    yield ""
    yield "| kernel | ms a step | share | calls a step |"
    yield "|---|---|---|---|"
    for one in seen["top"]:
        name = one["kernel"].replace("|", "/")[:110]
        yield f"| {name} | {one['ms_per_step']:.2f} | {one['share']:.1%} | {one['calls']:.0f} |"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=[*PARTS, "profile", "all"], default="all")
    parser.add_argument("--profile", action="store_const", const="profile", dest="part", help="as --part profile")
    parser.add_argument("--profile-of", choices=list(PARTS), default="full-1b")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30, help="a multiple of 5, at least 10")
    parser.add_argument("--batch", type=int, default=8, help="packed rows of a step")
    parser.add_argument("--micro", type=int, help="packed rows of a pass; default: those of a step")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--only", default="tunekit,trl,bare", help="contenders")
    parser.add_argument("--compile", action="store_true", help="the bare loop compiled as well")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of tunekit's recipe")
    parser.add_argument("--limit", type=float, help="seconds; what does not fit is left out. Default: 540 for one part")
    parser.add_argument("--run-limit", type=float, default=180, help="seconds of one run")
    parser.add_argument("--tiny", action="store_true", help="a model of two layers, also on a CPU: nothing is measured")
    parser.add_argument("--keep", type=Path, help="work in this folder, and keep it")
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    if wanted.tiny:
        wanted.steps, wanted.batch, wanted.length = min(wanted.steps, 10), min(wanted.batch, 4), 256
    wanted.micro = wanted.micro or wanted.batch
    wanted.only = wanted.only.split(",")
    if wanted.steps % EVERY or wanted.steps < WARM + EVERY or wanted.batch % wanted.micro:
        parser.error(f"steps must be a multiple of {EVERY} and at least {WARM + EVERY}; --micro must divide --batch")
    if wanted.limit is None:
        wanted.limit = float("inf") if wanted.part == "all" else 540.0
    return wanted


@contextmanager
def working(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="tunekit-gpu-") as name:
        yield Path(name)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        name = sys.argv[2]
        del sys.argv[1:3]
        work(name)
        return
    if sys.argv[1:2] == ["--make"]:
        make(Path(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:8]))
        return
    if sys.argv[1:2] == ["--look"]:
        look(Path(sys.argv[2]), int(sys.argv[3]))
        return
    wanted, started = arguments(), time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the running contender as well
    with working(wanted.keep) as folder:
        done = ran(["--look", str(folder / "machine.json"), "256" if wanted.tiny else "8192"], folder, True, 300)
        if done.failed:
            sys.exit(f"torch does not run here: {done.failed}")
        machine = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
        if not machine["cuda"] and not wanted.tiny:
            print(f"bench-gpu: nothing was measured: torch {machine['torch']} finds no CUDA device on this machine")
            return
        bench = Bench(folder, wanted, machine, started + wanted.limit)
        parts = [*PARTS, "profile"] if wanted.part == "all" else [wanted.part]
        results = [bench.compete(part) for part in parts if part != "profile"]
        seen = [bench.profiled()] if "profile" in parts else []
    shown(results, seen, wanted, machine, time.monotonic() - started)


def shown(
    results: list[dict[str, Any]],
    seen: list[dict[str, Any]],
    wanted: argparse.Namespace,
    machine: dict[str, Any],
    spent: float,
) -> None:
    """Prints everything, and writes it as JSON."""
    ceiling = machine.get("flops")
    if results:
        print(table(results, ceiling), end="\n\n")
        print("\n".join(judged(results, ceiling)), end="\n\n")
    for one in seen:
        print("\n".join(told(one)), end="\n\n")
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    memory_of = f", {machine['memory'] / 2**30:.0f} GiB, CUDA {machine['cuda_version']}" if machine["cuda"] else ""
    size = 256 if wanted.tiny else 8192
    print(
        f"{machine['name']}{memory_of}; {size}^3 bf16 products: {ceiling / 1e12:.1f} TFLOP/s; "
        f"Python {machine['python']}, {versions}; {spent:.0f} s in all."
        + (" TINY: nothing here is a measurement." if wanted.tiny else "")
    )
    if wanted.json:
        plain = [one | {"runs": {k: [vars(run) for run in v] for k, v in one["runs"].items()}} for one in results]
        whole = {"machine": machine, "tiny": wanted.tiny, "results": plain, "profile": seen}
        wanted.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
