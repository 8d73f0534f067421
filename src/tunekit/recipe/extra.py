"""`train.extra`: other fields of transformers.TrainingArguments, checked by name and type, transformers not imported.

The field names and annotations are read from the installed library's source text (AST), so a new release brings its
fields by itself, and a typo is refused in milliseconds.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any, Literal, Optional, Union

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tunekit.core.errors import Problem
from tunekit.core.registry import nearest
from tunekit.recipe.document import Document

NAMED = {
    "num_train_epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "per_device_train_batch_size": "train.batch_size and train.micro_batch_size",
    "per_device_eval_batch_size": "eval.batch_size",
    "gradient_accumulation_steps": "train.batch_size and train.micro_batch_size",
    "learning_rate": "train.learning_rate",
    "lr_scheduler_type": "train.schedule",
    "warmup_steps": "train.warmup",
    "warmup_ratio": "train.warmup",
    "weight_decay": "train.weight_decay",
    "max_grad_norm": "train.max_grad_norm",
    "optim": "train.optimizer",
    "adam_beta1": "train.adam_beta1",
    "adam_beta2": "train.adam_beta2",
    "adam_epsilon": "train.adam_epsilon",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "use_cpu": "the machine: a CPU is used when there is no GPU, CUDA_VISIBLE_DEVICES chooses GPUs",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "activation_checkpointing": "train.gradient_checkpointing",
    "neftune_noise_alpha": "train.neftune_alpha",
    "train_sampling_strategy": "train.group_by_length and data.shuffle",
    "use_liger_kernel": "train.kernels",
    "liger_kernel_config": "train.kernels",
    "torch_compile": "train.compile",
    "seed": "train.seed",
    "data_seed": "train.seed",
    "logging_steps": "train.log_every",
    "logging_strategy": "train.log_every",
    "logging_first_step": "train.log_every",
    "save_steps": "train.save_every",
    "save_strategy": "train.save_every",
    "save_total_limit": "train.keep_checkpoints",
    "eval_steps": "eval.every",
    "eval_strategy": "eval.every",
    "load_best_model_at_end": "train.keep_best",
    "metric_for_best_model": "train.keep_best",
    "greater_is_better": "train.keep_best",
    "dataloader_num_workers": "train.workers",
    "dataloader_pin_memory": "the machine: memory is pinned where there is a GPU",
    "report_to": "train.trackers",
    "remove_unused_columns": "the data pipeline",
    "output_dir": "output.dir",
    "run_name": "output.dir",
    "disable_tqdm": "--quiet",
    "logging_nan_inf_filter": "the guard against values that are not finite",
    "resume_from_checkpoint": "nothing: a run begins anew",
    "do_train": "the command",
    "do_eval": "eval",
    "do_predict": "eval",
    "push_to_hub": "a push is never part of a training run",
    "hub_model_id": "a push is never part of a training run",
    "hub_strategy": "a push is never part of a training run",
    "hub_private_repo": "a push is never part of a training run",
    "hub_always_push": "a push is never part of a training run",
    "hub_revision": "a push is never part of a training run",
    "fsdp": "launch.strategy (ddp)",
    "fsdp_config": "launch.strategy (ddp)",
    "deepspeed": "launch.strategy (ddp)",
    "parallelism_config": "launch.strategy (ddp)",
    "local_rank": "launch.processes",
    "auto_find_batch_size": "train.micro_batch_size (the global batch must not change by itself)",
    "ignore_data_skip": "nothing: rows are never repeated or skipped",
    "enable_jit_checkpoint": "train.save_every",
    "save_only_model": "train.save_every (a checkpoint that cannot be resumed from is none)",
    "label_names": "the data pipeline",
    "length_column_name": "the data pipeline",
    "dataloader_drop_last": "the data pipeline (no row is dropped silently)",
    "include_num_input_tokens_seen": "the metrics (tokens are always counted)",
    "average_tokens_across_devices": "the loss (always a mean over the labelled tokens of the global batch)",
    "prediction_loss_only": "eval",
    "hub_token": "no secrets in a recipe: log in with `hf auth login`",
    "trust_remote_code": "remote code is never run from a recipe",
}
"""TrainingArguments that a named key (or the pipeline) owns: `train.extra` may not shadow them."""

_PLAIN: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "dict": dict, "list": list}
_KNOWN = _PLAIN | {"Any": Any, "Literal": Literal, "Optional": Optional, "Union": Union}
_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "dict": "a block", "list": "a list"}
_WORDS |= {"False": "false", "True": "true"}


@cache
def training_arguments() -> dict[str, str]:
    """Field name -> annotation text of the installed transformers.TrainingArguments."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.origin is not None, "transformers is a dependency"
    tree = ast.parse((Path(spec.origin).parent / "training_args.py").read_text(encoding="utf-8"))
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "TrainingArguments").body
    return {
        n.target.id: ast.unparse(n.annotation)
        for n in body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }


def extra_problems(document: Document) -> list[Problem]:
    """Problems of the `train.extra` block: unknown names, shadowed keys, wrong types."""
    train = document.value.get("train")
    extra = train.get("extra") if isinstance(train, dict) else None
    if not extra or not isinstance(extra, dict):
        return []
    fields = training_arguments()
    problems = []
    for name, value in extra.items():
        path = ("train", "extra", name)
        if name in NAMED:
            problems.append(
                Problem(f"'train.extra.{name}' would shadow a named key", document.place(path), f"use: {NAMED[name]}")
            )
        elif name not in fields:
            close = nearest(name, fields)
            hint = (
                f"use: {NAMED[close]}"
                if close in NAMED
                else f"did you mean '{close}'?"
                if close
                else "see its documentation"
            )
            problems.append(
                Problem(f"'train.extra.{name}' is not a field of TrainingArguments", document.place(path), hint)
            )
        elif (wanted := _mismatch(fields[name], value)) is not None:
            problems.append(
                Problem(
                    f"'train.extra.{name}' must be {wanted}; it is {json.dumps(value, ensure_ascii=False)}",
                    document.place(path, of_value=True),
                )
            )
    return problems


def _mismatch(annotation: str, value: Any) -> str | None:
    """None when the value fits the annotation; otherwise the annotation in words. Classes of transformers take text."""
    tree = ast.parse(annotation, mode="eval").body
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    kind = eval(annotation, {"__builtins__": {}}, dict.fromkeys(names, str) | _KNOWN)
    try:
        TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError:
        return " or ".join(dict.fromkeys(_WORDS.get(word, "text") for word in _members(tree) if word != "None"))
    return None


def _members(node: ast.expr) -> list[str]:
    """The outer names of a union: ``dict[str, Any] | None`` has ``dict`` and ``None``."""
    if isinstance(node, ast.BinOp):
        return _members(node.left) + _members(node.right)
    if isinstance(node, ast.Subscript):
        outer = ast.unparse(node.value)
        if outer in ("Literal", "Optional", "Union"):
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return [word for item in inner for word in _members(item)]
        return [outer]
    return [ast.unparse(node)]
