"""Recipe + machine -> Plan: pure arithmetic, and the few choices that depend on the device."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Literal

from tunekit.core.errors import MachineError, Problem, UserError, raise_all
from tunekit.core.registry import ADAPTERS
from tunekit.plan.allowed import combination_problems, missing_for
from tunekit.plan.hardware import Hardware, can_compile
from tunekit.plan.plan import Plan
from tunekit.recipe.schema import Recipe

TOKENS_PER_PASS = 16_384
"""A derived micro-batch holds at most this many tokens: activations stay small, matrices stay large enough."""

_TRACKER_MODULES = {"azure_ml": "azureml.core", "flyte": "flytekit"}
"""The module by which transformers finds a tracker, where it is not named like the tracker."""
_NEEDS_NO_PACKAGE = ("kubeflow",)


def resolve(recipe: Recipe, recipe_path: Path, hardware: Hardware, folder: str | None = None) -> Plan:
    """Derives every number of a run that does not depend on the rows.

    Args:
        recipe: the checked recipe.
        recipe_path: its file: relative data paths start in its folder, and it names the run.
        hardware: the machine.
        folder: the run folder, where it is known already (see `run_folder`).

    Raises:
        UserError: the recipe does not fit the machine's processes, or the named output folder is not empty.
        MachineError: the recipe asks for what this machine does not have.
    """
    processes = _processes(recipe, hardware)
    micro, accumulation = _batches(recipe, processes)
    raise_all(UserError, combination_problems(recipe))
    raise_all(MachineError, [*_missing(recipe, hardware), *missing_for(recipe, hardware)])
    precision = _precision(recipe, hardware)
    return Plan(
        recipe=recipe,
        recipe_folder=os.path.relpath(recipe_path.parent),
        run_dir=folder or run_folder(recipe, recipe_path),
        hardware=hardware,
        precision=precision,
        weights_dtype=_weights_dtype(recipe, hardware, precision),
        processes=processes,
        micro_batch_size=micro,
        accumulation=accumulation,
        threads=recipe.train.threads or max(1, hardware.cores // processes),
        kernels=_kernels(recipe, hardware),
    )


def _kernels(recipe: Recipe, hardware: Hardware) -> Literal["none", "liger"]:
    if recipe.train.kernels != "auto":
        return recipe.train.kernels
    return "liger" if hardware.gpus and _installed("liger_kernel") else "none"


def _processes(recipe: Recipe, hardware: Hardware) -> int:
    wanted = recipe.launch.processes
    processes = (len(hardware.gpus) or 1) if wanted == "auto" else wanted
    if hardware.gpus and processes > len(hardware.gpus):
        raise UserError(
            f"{processes} processes, but this machine has {len(hardware.gpus)} GPU(s)",
            where="launch.processes",
            fix="use `processes: auto`, or set CUDA_VISIBLE_DEVICES= to run on the CPU",
        )
    if recipe.train.batch_size % processes:
        raise UserError(
            f"'train.batch_size' ({recipe.train.batch_size}) cannot be shared by {processes} processes",
            where="train.batch_size",
            fix=f"use a multiple of {processes}",
        )
    return processes


def _batches(recipe: Recipe, processes: int) -> tuple[int, int]:
    """(micro-batch, accumulation): the largest divisor of a process's share that keeps within TOKENS_PER_PASS."""
    share = recipe.train.batch_size // processes
    if recipe.train.micro_batch_size == "auto":  # the session asks the memory; it begins with the most there can be
        return share, 1
    if recipe.train.micro_batch_size:
        return recipe.train.micro_batch_size, share // recipe.train.micro_batch_size
    limit = max(1, TOKENS_PER_PASS // recipe.data.max_length)
    micro = max(size for size in range(1, share + 1) if share % size == 0 and (size <= limit or size == 1))
    return micro, share // micro


def _missing(recipe: Recipe, hardware: Hardware) -> list[Problem]:
    problems = []
    for tracker in recipe.train.trackers:
        module = _TRACKER_MODULES.get(tracker, tracker)
        package = module.replace(".", "-")
        if tracker not in _NEEDS_NO_PACKAGE and not _installed(module):
            problems.append(
                Problem(f"tracker '{tracker}' needs the package {package}", "train.trackers", f"pip install {package}")
            )
    if "8bit" in recipe.train.optimizer and importlib.util.find_spec("bitsandbytes") is None:
        problems.append(
            Problem(
                f"optimizer '{recipe.train.optimizer}' needs bitsandbytes",
                "train.optimizer",
                "pip install 'tunekit[bnb]'",
            )
        )
    if recipe.guards.on_divergence == "rollback" and hardware.gpus and _precision(recipe, hardware) == "fp16":
        problems.append(
            Problem(
                "a rollback leaves steps out, which the loss scaler of fp16 does not take",
                "guards.on_divergence",
                "use `precision: bf16` or fp32, or `on_divergence: stop`",
            )
        )
    if recipe.train.compile == "on" and not can_compile(hardware.device):
        problems.append(
            Problem("torch.compile needs a C++ compiler (g++)", "train.compile", "install one, or use `compile: auto`")
        )
    if recipe.train.kernels == "liger" and not (hardware.gpus and _installed("liger_kernel")):
        fix = "pip install liger-kernel, or use `kernels: auto`" if hardware.gpus else "use `kernels: auto`"
        problems.append(Problem("Liger kernels need a GPU and the package liger-kernel", "train.kernels", fix))
    if recipe.train.precision == "fp16" and not hardware.gpus:
        problems.append(Problem("fp16 training needs a GPU", "train.precision", "use `precision: auto`"))
    if recipe.train.precision == "bf16" and hardware.gpus and not all(gpu.bf16 for gpu in hardware.gpus):
        problems.append(
            Problem("this GPU does not compute in bfloat16", "train.precision", "use `precision: auto` (fp16 here)")
        )
    return problems


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent package
        return False


def _precision(recipe: Recipe, hardware: Hardware) -> Literal["fp32", "bf16", "fp16"]:
    if recipe.train.precision != "auto":
        return recipe.train.precision
    if hardware.gpus:
        return "bf16" if all(gpu.bf16 for gpu in hardware.gpus) else "fp16"
    return (
        "bf16" if hardware.cpu_bf16 else "fp32"
    )  # measured: 1.0x (hidden size 64) to 2x (512) where it is in hardware


def _weights_dtype(recipe: Recipe, hardware: Hardware, precision: str) -> Literal["float32", "bfloat16", "float16"]:
    if recipe.model.dtype != "auto":
        return recipe.model.dtype
    # Frozen weights need no float32 master copy. What is trained of the base's own does: an update of a thousandth of a
    # weight is lost in bfloat16.
    adapter = recipe.adapter_block
    frozen = False
    if adapter is not None:
        kind = ADAPTERS.load(adapter.kind)
        own = hasattr(kind, "apply") or getattr(kind, "TRAINS_BASE", False)
        frozen = not (own or getattr(adapter, "train_modules", ()) or recipe.model.new_tokens)
    return "bfloat16" if frozen and hardware.gpus and precision == "bf16" else "float32"


def run_folder(recipe: Recipe, recipe_path: Path, *, resume: bool = False) -> str:
    """Where the run is written: ``output.dir``, or ``runs/<recipe's name>``, numbered when there is one already.

    Args:
        recipe: the checked recipe.
        recipe_path: its file.
        resume: take the folder that is there; the last one, when they are numbered.

    Raises:
        UserError: the named folder is not empty, and not to be resumed.
    """
    named = recipe.output.dir
    if named is not None:
        if not resume and Path(named).exists() and (not Path(named).is_dir() or any(Path(named).iterdir())):
            raise UserError(
                f"the output folder '{named}' is not empty",
                where="output.dir",
                fix="go on with it by --resume, name another folder, remove this one, or leave output.dir out",
            )
        return named
    folder = following = Path("runs") / recipe_path.stem
    number = 1
    while following.exists():
        folder, number = following, number + 1
        following = Path("runs") / f"{recipe_path.stem}-{number}"
    return str(folder if resume else following)
