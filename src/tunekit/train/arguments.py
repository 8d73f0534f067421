"""The only place where a plan becomes TrainingArguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunekit.core.registry import ADAPTERS, METHODS
from tunekit.plan.hardware import can_compile
from tunekit.plan.plan import Plan

_OPTIMIZERS = {"adamw": "adamw_torch_fused", "muon": "adamw_torch_fused"}  # muon: built by `train.trainer` itself
SAVE_EVERY = 500
"""Steps between checkpoints where the recipe does not say."""
_OPEN = {"ddp_find_unused_parameters"}  # a default that `train.extra` may change
_MIN_RATIO = 0.1  # of cosine_with_min_lr: the field's usual tenth of the peak


_LIGER = {"cross_entropy": False, "fused_linear_cross_entropy": False, "rope": True, "rms_norm": True, "swiglu": True}
"""The loss is tunekit's own (`kernels.label_loss`)."""


_EARNED_BACK = {"cpu": 2e13, "cuda": 2e17}
"""Model FLOPs of a run in which compiled code saves a few times the minute or two that compiling takes (measured on two
CPU cores: a quarter of the time of a step; on a GPU an estimate)."""


def compiles(plan: Plan, flops: float) -> bool:
    """Whether torch compiles the model.

    Args:
        plan: has it settled, once the run has begun; ``train.compile: auto`` wants batches of one shape: packed rows
            of a method that does not keep them apart.
        flops: model FLOPs of the whole run, about.
    """
    if plan.compiled is not None:
        return plan.compiled
    wanted = plan.recipe.train.compile
    one_shape = plan.recipe.data.packing and not METHODS.load(plan.method).ISOLATED
    earns = one_shape and flops >= _EARNED_BACK[plan.hardware.device] and can_compile(plan.hardware.device)
    return wanted == "on" or (wanted == "auto" and earns)


def training_arguments(plan: Plan, staging: Path, *, evaluates: bool, compiled: bool = False) -> dict[str, Any]:
    """Keyword arguments for transformers.TrainingArguments (and its subclasses).

    Args:
        plan: the resolved plan.
        staging: folder in which the trainer writes checkpoints before they are put in place.
        evaluates: whether there are held-out examples.
        compiled: of `compiles`.
    """
    train = plan.recipe.train
    named: dict[str, Any] = {
        "output_dir": str(staging),
        "run_name": Path(plan.run_dir).name,
        "bf16": plan.precision == "bf16",
        "fp16": plan.precision == "fp16",
        "use_cpu": plan.hardware.device == "cpu",
        "gradient_checkpointing": train.gradient_checkpointing,
        "torch_compile": compiled,
        "use_liger_kernel": plan.kernels == "liger",
        "liger_kernel_config": _liger(plan) if plan.kernels == "liger" else None,
        "train_sampling_strategy": _sampling(plan),
        "length_column_name": "length",
        "seed": train.seed,
        "data_seed": train.seed,
        "dataloader_num_workers": train.workers,
        "dataloader_pin_memory": plan.hardware.device == "cuda",
        "report_to": list(train.trackers) or "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,  # the collator takes what it needs
        "label_names": ["labels"],
        "ddp_find_unused_parameters": False,
        **_optimization(plan),
        **_schedule(plan, evaluates),
    }
    adapter = plan.recipe.adapter_block
    arguments = getattr(ADAPTERS.load(adapter.kind), "arguments", None) if adapter is not None else None
    if arguments is not None:
        named |= arguments(adapter)
    shadowed = named.keys() & train.extra.keys()
    assert not shadowed - _OPEN, f"recipe.extra.NAMED misses {shadowed}"
    return named | train.extra


def _liger(plan: Plan) -> dict[str, bool]:
    """Its MLP takes the place of a forward that a bottleneck adapter needs for itself."""
    adapter = plan.recipe.adapter_block
    return _LIGER | ({"swiglu": False, "geglu": False} if adapter is not None and adapter.kind == "bottleneck" else {})


def _optimization(plan: Plan) -> dict[str, Any]:
    train = plan.recipe.train
    named: dict[str, Any] = {
        "num_train_epochs": train.epochs or 1.0,
        "max_steps": train.max_steps or -1,
        "per_device_train_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.schedule,
        "warmup_steps": int(train.warmup) if train.warmup >= 1 else train.warmup,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": _OPTIMIZERS.get(train.optimizer, train.optimizer),
        "adam_beta1": train.adam_beta1,
        "adam_beta2": train.adam_beta2,
        "adam_epsilon": train.adam_epsilon,
        "neftune_noise_alpha": train.neftune_alpha,
    }
    if train.schedule == "cosine_with_min_lr" and "lr_scheduler_kwargs" not in train.extra:
        named["lr_scheduler_kwargs"] = {"min_lr_rate": _MIN_RATIO}
    return named


def _schedule(plan: Plan, evaluates: bool) -> dict[str, Any]:
    """When to log, evaluate and save."""
    train, evaluation = plan.recipe.train, plan.recipe.eval
    every = evaluation.every if evaluates else None
    wanted = every if train.keep_best else train.save_every or SAVE_EVERY
    save_every = None if wanted == "never" else wanted
    named: dict[str, Any] = {
        "per_device_eval_batch_size": evaluation.batch_size,
        "logging_strategy": "steps",
        "logging_steps": train.log_every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it would write 0.0 where the loss is NaN
        "save_strategy": "steps" if save_every else "no",
        "eval_strategy": "steps" if every else "no",
        "load_best_model_at_end": train.keep_best,
    }
    if save_every:
        named["save_steps"] = _steps(save_every)
    if every:
        named["eval_steps"] = _steps(every)
    if train.keep_best or train.early_stopping:
        named |= {"metric_for_best_model": "eval_loss", "greater_is_better": False}
    return named


def _sampling(plan: Plan) -> str:
    data = plan.recipe.data
    if not data.shuffle:
        return "sequential"
    return "group_by_length" if plan.recipe.train.group_by_length else "random"


def _steps(every: float) -> float:
    return int(every) if every >= 1 else every
