"""`tunekit doctor`: what this machine can do, what is missing, and the line that installs it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import typer

from tunekit.cli.shared import Debug, guard
from tunekit.core.startup import how_threads_wait

State = Literal["ok", "note", "missing"]
Line = tuple[State, str, str]

REQUIRED = ("torch", "transformers", "datasets", "peft", "accelerate", "trl", "evaluate", "pyarrow", "zstandard")
OPTIONAL = {
    "bitsandbytes": ("8-bit optimizers", "pip install 'tunekit[bnb]'"),
    "tensorboard": ("tracker tensorboard", "pip install 'tunekit[tensorboard]'"),
    "wandb": ("tracker wandb", "pip install 'tunekit[wandb]'"),
    "mlflow": ("tracker mlflow", "pip install 'tunekit[mlflow]'"),
    "trackio": ("tracker trackio", "pip install 'tunekit[trackio]'"),
    "flash_attn": ("attention flash_attention_2 on CUDA", "pip install flash-attn --no-build-isolation"),
}
LOW_DISK = 5e9


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("doctor", rich_help_panel="Begin")(doctor)


def doctor(debug: Debug = False) -> None:
    """Tell what this machine can do and what is missing.

    Example: [bold]tunekit doctor[/bold]

    Exit code 4 when something that tunekit needs is missing.
    """
    with guard(debug=debug):
        lines = list(_packages())
        if not any(state == "missing" for state, _, _ in lines):
            lines += _machine()
        lines += _extras()
        signs = {
            "ok": typer.style("ok", fg="green"),
            "note": typer.style("--", fg="yellow"),
            "missing": typer.style("NO", fg="red"),
        }
        for state, name, words in lines:
            typer.echo(f"{signs[state]}  {name:<14} {words}")
        if any(state == "missing" for state, _, _ in lines):
            raise typer.Exit(4)


def _packages() -> Iterator[Line]:
    for name in REQUIRED:
        try:
            yield "ok", name, version(name)
        except PackageNotFoundError:
            yield "missing", name, f"pip install {name}"


def _extras() -> Iterator[Line]:
    for name, (purpose, install) in OPTIONAL.items():
        found = importlib.util.find_spec(name) is not None
        yield ("ok", name, purpose) if found else ("note", name, f"not installed; for {purpose}: {install}")


def _threads(cores: int) -> Iterator[Line]:
    yield (
        "ok",
        "threads",
        f"{cores}, one a core, shared by the processes of a run; `train.threads` sets another number",
    )
    asleep, setting = how_threads_wait()
    if asleep:
        yield "ok", "idle threads", f"sleep ({setting}): spinning, they can slow training tenfold when a core is busy"
    else:
        why = f"spin ({setting}, set in the environment)" if setting else "spin, as OpenMP has it by default"
        yield "note", "idle threads", f"{why}: when a core is busy, training can be ten times slower"


def _machine() -> Iterator[Line]:
    from tunekit.data import cache
    from tunekit.plan.hardware import probe

    hardware = probe()
    yield "ok", "processor", f"{hardware.cpu}; this process may use {hardware.cores} cores"
    yield from _threads(hardware.cores)
    yield "ok", "memory", f"{hardware.memory / 1e9:.1f} GB"
    yield (
        ("ok" if hardware.cpu_bf16 else "note"),
        "CPU bfloat16",
        "in hardware" if hardware.cpu_bf16 else "not in hardware: fp32 is used",
    )
    if not hardware.gpus:
        yield "note", "GPU", f"none: training runs on the CPU, in {'bf16' if hardware.cpu_bf16 else 'fp32'}"
    for index, gpu in enumerate(hardware.gpus):
        yield "ok", f"GPU {index}", f"{gpu.name}, {gpu.memory / 1e9:.0f} GB, trains in {'bf16' if gpu.bf16 else 'fp16'}"
    free = shutil.disk_usage(Path.cwd()).free
    yield ("ok" if free > LOW_DISK else "note"), "disk", f"{free / 1e9:.1f} GB free here"
    yield "ok", "data cache", str(cache.root())
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "")
    yield (
        ("note" if offline else "ok"),
        "Hub",
        "offline (HF_HUB_OFFLINE is set)" if offline else "reached when a recipe names a Hub id",
    )
