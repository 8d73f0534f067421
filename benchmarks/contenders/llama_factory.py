"""LLaMA-Factory by its command. Options: best=1 (what runs fastest on a CPU), or any key of its config, as key=value.

Its `empty` template adds nothing to the text, not even the end-of-text token: the completion brings it along. As it
comes it recomputes activations (gradient checkpointing). Best: without that and grouped by length. packing=1 packs with
`neat_packing` (its own rows of the mask for each document), which needs a dense mask for every batch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common
import peers

BEST = {"disable_gradient_checkpointing": True, "train_sampling_strategy": "group_by_length"}
OFFLINE = {"DO_NOT_TRACK": "1", "WANDB_DISABLED": "true", "USE_MODELSCOPE_HUB": "0"}


def config(job: common.Job) -> dict[str, Any]:
    facts = job.facts
    packing = job.on("packing")
    settings: dict[str, Any] = {
        "model_name_or_path": job.model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": job.adapter or "full",
        "template": "empty",
        "dataset": "bench",
        "dataset_dir": str(job.out / "data"),
        "cutoff_len": facts["max_length"] + 8 * packing,  # packing takes one off and needs a multiple of 8
        "output_dir": str(job.out / "model"),
        "per_device_train_batch_size": job.packed_batch() if packing else facts["batch_size"],
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1.0,
        "learning_rate": facts["learning_rate"],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch",
        "bf16": job.precision == "bf16",
        "use_cpu": True,
        "seed": facts["seed"],
        "logging_steps": 1,
        "include_num_input_tokens_seen": "all" if packing else "non_padding",
        "save_strategy": "no",
        "report_to": "none",
    }
    if job.adapter:
        lora = common.LORA
        settings |= {"lora_rank": lora["r"], "lora_alpha": lora["lora_alpha"], "lora_dropout": lora["lora_dropout"]}
        settings |= {"lora_target": "all"}
    if packing:
        settings |= {"packing": True, "neat_packing": True, "disable_gradient_checkpointing": True}
    if job.on("best"):
        settings |= BEST
    chosen = {key: value for key, value in job.options.items() if key not in ("best", "packing")}
    return settings | {key: json.loads(value) if value in ("true", "false") else value for key, value in chosen.items()}


def write_rows(job: common.Job) -> None:
    """Writes the rows and their description to OUT/data."""
    data = job.out / "data"
    data.mkdir(parents=True)
    end = peers.end_of_text(Path(job.model))
    rows = [row | {"completion": row["completion"] + end} for row in peers.rows_of(Path(job.train))]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (data / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = {"prompt": "prompt", "response": "completion"}
    described = {"bench": {"file_name": "train.jsonl", "columns": columns}}
    (data / "dataset_info.json").write_text(json.dumps(described), encoding="utf-8")


def main() -> None:
    job = common.job()
    command, missing = peers.command_of("llama_factory")
    if command is None:
        common.write(job, {}, missing)
        return
    write_rows(job)
    settings = job.out / "config.yaml"  # JSON is YAML
    settings.write_text(json.dumps(config(job), indent=2), encoding="utf-8")
    extra = OFFLINE | {"HF_DATASETS_CACHE": str(job.out / "cache")}
    seen = peers.watch([str(command), "train", str(settings)], job.out, extra, common.age)
    if seen.error:
        common.write(job, {}, f"LLaMA-Factory: {seen.error}")
        return
    used = common.used()
    found = peers.tokenized(command.parent / "python", job, job.out / "cache")
    # a packed row counts as it is, padding included: all rows are full but for a few tokens
    counts = [log["num_input_tokens_seen"] for log in seen.logs]
    tokens = job.facts["tokens"] if job.on("packing") else int(counts[-1])
    result = {
        "seconds": seen.last["train_runtime"],
        "first_step_seconds": seen.first_step,
        "steps": len(seen.logs),
        "tokens": tokens,
        "labelled": found.get("labelled"),
        "rates": None,
        "steady": peers.steady([log["train_runtime"] for log in seen.logs], counts, tokens, common.WARM),
        "tokenized": found,
        "losses": [log["loss"] for log in seen.logs],
        "skipped": None,
    }
    (job.out / "result.json").write_text(json.dumps(result | used, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
