"""Axolotl by its command. Options: best=1 (what runs fastest on a CPU), packing=1, or any key of its config.

Its `input_output` format takes text segments with and without labels as they are. It trains in fp32 whatever precision
is asked for: on a machine without a GPU `bf16: true` ends in "You need to assign use_cpu", for which it has no key. As
it comes it does not recompute activations. Best: grouped by length. packing=1 packs with torch's own attention.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common
import peers

BEST = {"group_by_length": True}
PACKING = {"sample_packing": True, "attn_implementation": "sdpa", "sdpa_varlen": False, "pad_to_sequence_len": False}
OFFLINE = {"AXOLOTL_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1", "WANDB_DISABLED": "true"}


def config(job: common.Job) -> dict[str, Any]:
    facts = job.facts
    packing = job.on("packing")
    settings: dict[str, Any] = {
        "base_model": job.model,
        "datasets": [{"path": str(job.out / "train.jsonl"), "ds_type": "json", "type": "input_output"}],
        "dataset_prepared_path": str(job.out / "prepared"),
        "train_on_inputs": False,
        "val_set_size": 0,
        "sequence_len": facts["max_length"],
        "output_dir": str(job.out / "model"),
        "micro_batch_size": job.packed_batch() if packing else facts["batch_size"],
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "optimizer": "adamw_torch",
        "learning_rate": facts["learning_rate"],
        "lr_scheduler": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": False,
        "fp16": False,
        "seed": facts["seed"],
        "logging_steps": 1,
        "save_strategy": "no",
    }
    if job.adapter:
        lora = common.LORA
        settings |= {"adapter": "lora", "lora_r": lora["r"], "lora_alpha": lora["lora_alpha"]}
        settings |= {"lora_dropout": lora["lora_dropout"], "lora_target_linear": True}
        settings |= dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False)  # CUDA only
    if packing:
        settings |= PACKING
    if job.on("best"):
        settings |= BEST
    chosen = {key: value for key, value in job.options.items() if key not in ("best", "packing")}
    return settings | {key: json.loads(value) if value in ("true", "false") else value for key, value in chosen.items()}


def write_rows(job: common.Job) -> None:
    """Writes the rows as labelled segments to OUT/train.jsonl."""
    end = peers.end_of_text(Path(job.model))
    with (job.out / "train.jsonl").open("w", encoding="utf-8") as lines:
        for row in peers.rows_of(Path(job.train)):
            asked = {"label": False, "text": row["prompt"]}
            said = {"label": True, "text": row["completion"] + end}
            lines.write(json.dumps({"segments": [asked, said]}, ensure_ascii=False) + "\n")


def main() -> None:
    job = common.job()
    command, missing = peers.command_of("axolotl")
    if command is None:
        common.write(job, {}, missing)
        return
    write_rows(job)
    settings = job.out / "config.yaml"  # JSON is YAML
    settings.write_text(json.dumps(config(job), indent=2), encoding="utf-8")
    extra = OFFLINE | {"HF_DATASETS_CACHE": str(job.out / "cache")}
    seen = peers.watch([str(command), "train", str(settings)], job.out, extra, common.age)
    if seen.error:
        common.write(job, {}, f"Axolotl: {seen.error}")
        return
    used = common.used()
    found = peers.tokenized(command.parent / "python", job, job.out / "prepared")
    tokens = found.get("tokens", job.facts["tokens"])
    counts = [log["tokens/trainable"] for log in seen.logs if "tokens/trainable" in log]
    if counts and found.get("labelled"):  # packing leaves out what does not fill a batch
        tokens = round(tokens * counts[-1] / found["labelled"])
    result = {
        "seconds": seen.last["train_runtime"],
        "first_step_seconds": seen.first_step,
        "steps": len(seen.logs),
        "tokens": tokens,
        "labelled": int(counts[-1]) if counts else found.get("labelled"),
        "rates": None,
        "steady": peers.steady(seen.times, counts, tokens, common.WARM),
        "tokenized": found,
        "losses": [log["loss"] for log in seen.logs],
        "note": "fp32: Axolotl has no bf16 on a CPU" if job.precision == "bf16" else None,
        "skipped": None,
    }
    (job.out / "result.json").write_text(json.dumps(result | used, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
