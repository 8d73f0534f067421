"""What this machine has. The processor is read without torch; GPUs need torch."""

from __future__ import annotations

import os
from pathlib import Path

from tunekit.recipe.schema import Block


class Gpu(Block):
    """One CUDA device. ``memory`` in bytes."""

    name: str
    memory: int
    bf16: bool


class Hardware(Block):
    """The machine as the plan sees it. ``memory`` in bytes; ``cores`` are those this process may use."""

    cpu: str
    cores: int
    memory: int
    cpu_bf16: bool
    gpus: tuple[Gpu, ...] = ()

    @property
    def device(self) -> str:
        """``cuda`` when there is a GPU, else ``cpu``."""
        return "cuda" if self.gpus else "cpu"


def usable_cores() -> int:
    """Cores this process may use: the affinity mask, cut by a cgroup quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def _cpu() -> tuple[str, bool]:
    """Name of the processor, and whether it multiplies bfloat16 in hardware (AVX512-BF16 or AMX)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown", False
    facts = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = set(facts.get("flags", "").split())
    return facts.get("model name", "unknown"), bool(flags & {"avx512_bf16", "amx_bf16"})


def probe() -> Hardware:
    """Looks at this machine; imports torch to ask for GPUs."""
    import torch

    name, cpu_bf16 = _cpu()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        gpus.append(Gpu(name=facts.name, memory=facts.total_memory, bf16=facts.major >= 8))
    return Hardware(cpu=name, cores=usable_cores(), memory=memory, cpu_bf16=cpu_bf16, gpus=tuple(gpus))
